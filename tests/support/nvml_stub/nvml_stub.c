/* A libnvidia-ml.so.1 for tests, with the symbols of NVML that migcompat uses, and no GPU.
 *
 * What it answers is in the file $NVML_STUB, read anew at every call, one "key value" a line:
 *   driver VERSION                 supported FIRST LAST     current FIRST LAST   (vGPU versions)
 *   gpu.ADDRESS NUMBER             ecc.NUMBER 0|1           types.NUMBER ID ID …
 *   name.ID TEXT                   return.FUNCTION CODE     hang.FUNCTION        crash.FUNCTION
 * The signatures are those of NVIDIA's NVML API Reference Guide.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

typedef struct {
    unsigned int minVersion, maxVersion;
} Range;

static const char *value(const char *key)
{
    static char line[4096];
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t length = strlen(key);
    const char *found = NULL;

    while (!found && file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && (line[length] == ' ' || !line[length]))
            found = line + length + (line[length] == ' ');
    }
    if (file)
        fclose(file);
    return found;
}

static const char *value_of(const char *key, const char *part)
{
    char whole[256];

    snprintf(whole, sizeof whole, "%s.%s", key, part);
    return value(whole);
}

static const char *value_of_number(const char *key, unsigned int number)
{
    char text[16];

    snprintf(text, sizeof text, "%u", number);
    return value_of(key, text);
}

/* What $NVML_STUB says that FUNCTION returns. */
static int begin(const char *function)
{
    const char *code;

    if (value_of("hang", function))
        for (;;)
            pause();
    if (value_of("crash", function))
        abort();
    code = value_of("return", function);
    return code ? atoi(code) : SUCCESS;
}

#define BEGIN()                                   \
    do {                                          \
        int code = begin(__func__);               \
        if (code)                                 \
            return code;                          \
    } while (0)

static int range(const char *key, Range *into)
{
    const char *text = value(key);

    return text && sscanf(text, "%i %i", (int *)&into->minVersion, (int *)&into->maxVersion) == 2;
}

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    BEGIN();
    return SUCCESS;
}

const char *nvmlErrorString(int code)
{
    (void)code;
    return "an error of the stub";
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    const char *text;

    BEGIN();
    text = value("driver");
    if (!text)
        return NOT_SUPPORTED;
    snprintf(version, length, "%s", text);
    return SUCCESS;
}

int nvmlGetVgpuVersion(Range *supported, Range *current)
{
    BEGIN();
    if (!range("supported", supported))
        return NOT_SUPPORTED;
    if (!range("current", current))
        *current = *supported;
    return SUCCESS;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device)
{
    const char *number;

    BEGIN();
    number = value_of("gpu", address);
    if (!number)
        return NOT_FOUND;
    *device = (void *)strtoul(number, NULL, 10);
    return SUCCESS;
}

int nvmlDeviceGetEccMode(void *device, unsigned int *current, unsigned int *pending)
{
    const char *mode;

    BEGIN();
    mode = value_of_number("ecc", (unsigned long)device);
    if (!mode)
        return NOT_SUPPORTED;
    *current = atoi(mode);
    *pending = !*current;
    return SUCCESS;
}

int nvmlDeviceGetSupportedVgpus(void *device, unsigned int *count, unsigned int *ids)
{
    const char *types;
    unsigned int room = *count, found = 0;
    char *end;

    BEGIN();
    types = value_of_number("types", (unsigned long)device);
    for (; types && *types; types = end) {
        unsigned int id = strtoul(types, &end, 10);

        if (end == types)
            break;
        if (found < room)
            ids[found] = id;
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlVgpuTypeGetName(unsigned int id, char *name, unsigned int *length)
{
    const char *text;

    BEGIN();
    text = value_of_number("name", id);
    if (!text)
        return INVALID_ARGUMENT;
    if (*length <= strlen(text))
        return INSUFFICIENT_SIZE;
    strcpy(name, text);
    return SUCCESS;
}
