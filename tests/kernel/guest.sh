# What the booted machine does (image: init): loads drivers, then runs the chosen tests.
set -e
export PATH=/bin:/sbin HOME=/tmp LC_ALL=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=/mnt/source/core:/mnt/source/deviceplugin:/mnt/site
modprobe -a nvme igb vfio_iommu_type1 vfio-pci iommufd mtty mdpy mbochs
# QEMU's IOMMU has no interrupt remapping for VFIO without KVM.
echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
cd /mnt/source
echo >> /mnt/out/results.jsonl
# Parents' conftest.py are the host's. No test may take the machine's whole time.
exec python3 -m pytest -p no:cacheprovider -p tests.kernel.guest.relay --confcutdir=tests/kernel/guest \
  --override-ini=timeout=300 @/mnt/source/selected
