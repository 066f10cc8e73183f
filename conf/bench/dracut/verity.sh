#!/bin/sh
# dracut's own dm-verity needs systemd in the initramfs. This hook of its event queue is the smaller way.
# Opens the root that the kernel's command line describes: verity.data=DEVICE verity.hash=HASH verity.options=A,B
verity_data=$(getarg verity.data=)
if [ -e "$verity_data" ] && [ ! -e /dev/mapper/root ]; then
  # shellcheck disable=SC2046 # several words
  veritysetup open $(getarg verity.options= | tr , ' ') "$verity_data" root "$verity_data" "$(getarg verity.hash=)"
fi
