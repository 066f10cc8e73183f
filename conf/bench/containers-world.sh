# Process 1 of the world of `bench containers`: a root, a medium, a network and processes of its own.
# sh containers-world.sh ROOT MEDIUM PROGRAMS. Says "ready" and ends when its standard input does; all of it goes then.
set -e
root=$1 medium=$2 programs=$3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
# podman keeps its locks there.
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
: >> "$root/etc/resolv.conf"
: >> "$root/etc/hosts"
mkdir -p "$root/medium" "$root/programs" "$root/.old"
loop=
[ -b "$medium" ] || loop="-o loop"
mount $loop "$medium" "$root/medium"
mount --rbind "$programs" "$root/programs"
cd "$root"
pivot_root . .old
busybox umount -l /.old
ip link set lo up
echo ready
cat > /dev/null
# The groups are the workstation's, and would stay.
kill -KILL -1 || true
for try in 1 2 3 4 5 6 7 8 9; do
  find /sys/fs/cgroup/rustiot-bench /sys/fs/cgroup/docker /sys/fs/cgroup/libpod_parent -depth -type d -exec rmdir {} \; \
    2>/dev/null && break
  sleep 0.2
done
