// Launcher stands in for virt-launcher in pods of the real node's tests, and for the sandbox's process (pause).
// It says which devices its container was given, as one line of JSON, and then runs until it is told to end.
//
//	launcher          says its devices, again at every SIGUSR1; SIGTERM ends it
//	launcher pause    says nothing; SIGTERM ends it
//	launcher devices  says its devices and ends
//	launcher probe    ends
//
// Arguments that it does not know are ignored: the pods of a virtual machine bring virt-launcher's.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// Report is the line of JSON.
type Report struct {
	PID         int               `json:"pid"`
	UID         int               `json:"uid"`
	GID         int               `json:"gid"`
	Environment map[string]string `json:"environment"` // what KubeVirt's device plugin protocol names
	Devices     []Device          `json:"devices"`     // /dev/vfio/** and /dev/iommu, by path; no directories
	Errors      []string          `json:"errors"`      // what could not be read below /dev/vfio
}

// Device is a file that the container was given.
type Device struct {
	Path   string `json:"path"`
	Type   string `json:"type"`   // "c", "b", "-", "l", "p" or "s", as in ls -l
	Number string `json:"number"` // "10:196"; empty if it is no device
	Opens  bool   `json:"opens"`  // for reading and writing
	Error  string `json:"error"`  // why it does not
}

func main() {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "probe":
	case "devices":
		say()
	case "pause":
		run(func() {})
	default:
		run(say)
	}
}

// run waits for the end and, as process 1 has to, for children that lost their parent.
func run(report func()) {
	signals := make(chan os.Signal, 16)
	signal.Ignore(syscall.SIGPIPE) // whoever reads the log may go
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGCHLD)
	report()
	reap()
	for s := range signals {
		switch s {
		case syscall.SIGUSR1:
			report()
		case syscall.SIGCHLD:
			reap()
		default:
			return
		}
	}
}

func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}

func say() {
	report := Report{
		PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(),
		Environment: map[string]string{}, Devices: []Device{}, Errors: []string{},
	}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "PCI_RESOURCE") || strings.HasPrefix(name, "MDEV_PCI_RESOURCE") {
			report.Environment[name] = value
		}
	}
	for _, top := range []string{"/dev/iommu", "/dev/vfio"} {
		filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				report.Errors = append(report.Errors, err.Error())
			case !entry.IsDir():
				report.Devices = append(report.Devices, look(path))
			}
			return nil
		})
	}
	line, err := json.Marshal(report)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

func look(path string) Device {
	device := Device{Path: path}
	var stat syscall.Stat_t
	if err := syscall.Lstat(path, &stat); err != nil {
		device.Error = err.Error()
		return device
	}
	device.Type = map[uint32]string{
		syscall.S_IFCHR: "c", syscall.S_IFBLK: "b", syscall.S_IFREG: "-",
		syscall.S_IFLNK: "l", syscall.S_IFIFO: "p", syscall.S_IFSOCK: "s",
	}[stat.Mode&syscall.S_IFMT]
	if device.Type == "c" || device.Type == "b" {
		device.Number = fmt.Sprintf("%d:%d", major(stat.Rdev), minor(stat.Rdev))
	}
	file, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	if err != nil {
		device.Error = err.Error()
		return device
	}
	syscall.Close(file)
	device.Opens = true
	return device
}

// The numbers' bits: include/linux/kdev_t.h, new_encode_dev, with glibc's gnu_dev_major for the upper halves.
func major(dev uint64) uint64 { return dev>>8&0xfff | dev>>32&^0xfff }
func minor(dev uint64) uint64 { return dev&0xff | dev>>12&^0xff }
