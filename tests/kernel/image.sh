#!/bin/bash
# Makes what a machine with a kernel of its own is booted from, out of Debian packages:
#
#   image.sh DIRECTORY MIRROR SUITE     ->  DIRECTORY/{vmlinuz,initrd.cpio,root,packages.txt}
#
# vmlinuz: Debian's own. initrd.cpio: busybox, Python, and modules; those of vfio, iommufd and the sample mdev drivers
# are built here from Debian's kernel source, because Debian leaves out the samples and VFIO_DEVICE_CDEV. root: the
# unpacked packages, QEMU and Python among them. Nothing is installed on this machine. image.py runs this as root in
# mount and PID namespaces that end with it, and keeps the result.
set -euo pipefail
dir=$1 mirror=$2 suite=$3
root=$dir/root
here=$(cd "$(dirname "$0")" && pwd)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=(
  qemu-system-x86 linux-image-amd64 linux-headers-amd64 linux-source busybox-static python3 # what the result is made of
  base-files libc-bin bash dash coreutils findutils grep sed mawk diffutils gzip tar xz-utils make perl-base kmod cpio
)
began=$SECONDS
done_with() { echo "STEP $((SECONDS - began)) s: $1"; began=$SECONDS; }

# --- Packages: an apt of our own, with the machine's settings (a proxy) and Debian's keys, but its own sources
mkdir -p "$dir"/apt/{etc,lists/partial,archives/partial} "$root"
echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main" > "$dir/apt/etc/sources.list"
: > "$dir/apt/status"
cat > "$dir/apt/conf" <<CONF
Dir::Etc::sourcelist "$dir/apt/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::Lists "$dir/apt/lists";
Dir::State::status "$dir/apt/status";
Dir::State::extended_states "$dir/apt/extended_states";
Dir::Cache "$dir/apt";
Dir::Log "$dir/apt";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
export APT_CONFIG=$dir/apt/conf LC_ALL=C
apt-get -qq update
apt-get -qq --yes --download-only install "${packages[@]}"
done_with "packages"

# --- One tree. No maintainer script runs, so what they would have made is made here
mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{proc,dev/shm,tmp,build}
for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
export root
printf '%s\0' "$dir"/apt/archives/*.deb | xargs -0 -n 1 -P "$(nproc)" bash -euo pipefail -c \
  'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$root" --keep-directory-symlink' unpack
for package in "$dir"/apt/archives/*.deb; do
  dpkg-deb --show --showformat '${Package} ${Version}\n' "$package"
done > "$dir/packages.txt"
rm -rf "$dir/apt"
ln -sf mawk "$root/usr/bin/awk"
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
mknod -m 666 "$root/dev/null" c 1 3
mount -t proc proc "$root/proc" # the kernel's objtool reads it; the mount ends with our namespace
in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C "$@"; }
release=$(cd "$root/usr/lib/modules" && echo *-amd64)
cp "$root/boot/vmlinuz-$release" "$dir/vmlinuz"
done_with "unpacking"

# --- Modules. What Kconfig would say is said by -D: CONFIG_VFIO_DEVICE_CDEV and CONFIG_VFIO_DEBUGFS are off in Debian's
#     kernel, so everything that sees struct vfio_device must be built anew, with the same answer.
build=$root/build
tar -xJf "$root"/usr/src/linux-source-*.tar.xz -C "$build" --wildcards --strip-components=1 \
  '*/samples/vfio-mdev/*' '*/drivers/vfio/*.[ch]' '*/drivers/iommu/iommufd/*.[ch]' '*/drivers/iommu/iommu-priv.h' \
  '*/lib/interval_tree.c'
iommufd=$build/drivers/iommu/iommufd
# iommufd's span iterator lives in vmlinux where CONFIG_INTERVAL_TREE_SPAN_ITER is on; here it becomes part of the module.
{
  printf '#include <linux/%s.h>\n' interval_tree compiler export
  sed -n '/^#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER/,/^#endif/p' "$build/lib/interval_tree.c"
} > "$iommufd/span_iter.c"
cat > "$build/Kbuild" <<'KBUILD'
subdir-ccflags-y := -DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_VFIO_DEBUGFS=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1
obj-m += drivers/iommu/iommufd/ drivers/vfio/ samples/vfio-mdev/
KBUILD
cat > "$iommufd/Kbuild" <<'KBUILD'
iommufd-y := device.o fault.o hw_pagetable.o io_pagetable.o ioas.o main.o pages.o vfio_compat.o span_iter.o
obj-m += iommufd.o
KBUILD
cat > "$build/drivers/vfio/Kbuild" <<'KBUILD'
vfio-y := vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o debugfs.o
obj-m += vfio.o vfio_iommu_type1.o pci/ mdev/
KBUILD
cat > "$build/drivers/vfio/pci/Kbuild" <<'KBUILD'
vfio-pci-core-y := vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o vfio_pci_config.o
vfio-pci-y := vfio_pci.o vfio_pci_igd.o
obj-m += vfio-pci-core.o vfio-pci.o
KBUILD
cat > "$build/drivers/vfio/mdev/Kbuild" <<'KBUILD'
mdev-y := mdev_core.o mdev_sysfs.o mdev_driver.o
obj-m += mdev.o
KBUILD
echo 'obj-m += mtty.o mdpy.o mbochs.o' > "$build/samples/vfio-mdev/Kbuild"
in_root make --silent -j2 -C "/usr/src/linux-headers-$release" M=/build modules
done_with "modules"

# --- The initial RAM file system, which is all the file system there is
ram=$root/ram
mkdir -p "$ram"/{proc,sys,dev,run,tmp,etc,mnt/source,mnt/site,mnt/out,usr/bin,usr/sbin,usr/lib,usr/lib64}
for link in bin sbin lib lib64; do ln -s "usr/$link" "$ram/$link"; done
cp "$root/usr/bin/busybox" "$ram/bin/"
for applet in sh cat dmesg ip ln mkdir mount umount poweroff; do ln -s busybox "$ram/bin/$applet"; done
ln -s ../bin/busybox "$ram/sbin/modprobe" # where the kernel looks for it
python=$(cd "$root/usr/bin" && echo python3.[0-9]*)
cp "$root/usr/bin/$python" "$ram/usr/bin/"
ln -s "$python" "$ram/usr/bin/python3"
tar -c -C "$root/usr/lib" --exclude=test --exclude=idlelib --exclude=tkinter --exclude=turtledemo \
  --exclude=ensurepip --exclude=pydoc_data --exclude='config-*' "$python" | tar -x -C "$ram/usr/lib"
in_root "$python" -m compileall -q -j2 -s /ram --invalidation-mode unchecked-hash "/ram/usr/lib/$python"
# Shared libraries: of Python, of its modules, and those that wheels expect of any system (PEP 600).
system=$(printf '/usr/lib/x86_64-linux-gnu/lib%s ' stdc++.so.6 gcc_s.so.1 pthread.so.0 dl.so.2 rt.so.1 m.so.6 util.so.1)
{
  in_root ldd "/usr/bin/$python" $(cd "$root" && find "usr/lib/$python/lib-dynload" -name '*.so' -printf '/%p ') $system
  echo $system
} | grep -oE '/[^ ()]+\.so[^ ():]*' | sort -u | while read -r library; do
  mkdir -p "$ram$(dirname "$library")"
  cp -L "$root$library" "$ram$library"
done
modules=$ram/usr/lib/modules/$release
mkdir -p "$modules"
cp "$root/usr/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$modules/"
in_root depmod "$release"
for module in nvme igb 9p 9pnet_virtio virtio_pci vfio-pci; do
  in_root modprobe --set-version "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | sort -u | while read -r file; do
  xz -dc "$root$file" > "$modules/$(basename "${file%.xz}")"
done
find "$build" -name '*.ko' -exec cp {} "$modules/" \; # over Debian's own
in_root find "/ram/usr/lib/modules/$release" -name '*.ko' -exec strip --strip-debug {} +
in_root depmod --basedir /ram "$release"
install -m 755 "$here/init" "$ram/init"
in_root sh -c 'cd /ram && find . | cpio --quiet -o -H newc' > "$dir/initrd.cpio"
done_with "initial RAM file system"

umount "$root/proc"
rm -rf "$ram" "$build" "$root"/boot "$root"/usr/{src,lib/modules,lib/gcc,libexec/gcc,share/doc,share/man,share/locale}
