#!/bin/sh
# Runs in the test VM before anything else: enter.sh RESULTS COMMAND...
#
# virtme-ng's root is the host's over 9p without a cache, which makes a Python start take ten
# seconds. So the same files are mounted again with a cache, below a layer in memory that takes
# all changes, and COMMAND runs with that as its root. The kernel's modules stand where tools
# look for them, and RESULTS is the folder that is shared with the host.
set -eu
results=$1
shift
base=/run/vsockdump-root
release=$(uname -r)
mkdir -p "$base"
mount -t tmpfs tmpfs "$base"
mkdir "$base/lower" "$base/upper" "$base/work" "$base/root"
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose cached "$base/lower"
mount -t overlay -o "lowerdir=$base/lower,upperdir=$base/upper,workdir=$base/work" overlay \
    "$base/root"
modules=$(readlink -f "/lib/modules/$release")
for folder in /proc /sys /dev "$results"; do
    mkdir -p "$base/root$folder"
    mount --rbind "$folder" "$base/root$folder"
done
mount -t tmpfs tmpfs "$base/root/run"
mkdir -p "$base/root/lib/modules"
[ -e "$base/root/lib/modules/$release" ] || ln -s "$modules" "$base/root/lib/modules/$release"
cd /
exec chroot "$base/root" "$@"
