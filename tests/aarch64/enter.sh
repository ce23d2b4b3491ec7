#!/usr/bin/env bash
# Runs a command inside the arm64 root. Called by arm_board.py in user and mount namespaces of its own: every mount
# and the binfmt_misc handler are seen by nobody else and go when the command ends.
#
#   enter.sh ROOT EMULATOR CPU CPUINFO HOST:INSIDE... -- COMMAND...    (COMMAND is an absolute path)
set -euo pipefail
root=$1 emulator=$2 cpu=$3 cpuinfo=$4
shift 4
PATH=$PATH:/usr/sbin:/sbin

binfmt=/proc/sys/fs/binfmt_misc
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
launch=()
# Linux 6.7 and later give each user namespace its own handlers. F: the emulator is opened here, outside the root.
if ! { mount -t binfmt_misc binfmt_misc $binfmt &&
    printf '%s' ":edgemm-aarch64:M::$magic:$mask:$emulator:F" >$binfmt/register; } 2>/dev/null; then
    if ! grep -qs '^flags:.*F' $binfmt/qemu-aarch64; then
        touch "$root/emulator"  # then the command itself is emulated, but starts no other
        mount --bind "$emulator" "$root/emulator"
        launch=(/emulator)
    fi
fi

for folder in proc sys dev; do mount --rbind /$folder "$root/$folder"; done
# without it libraries that read the processor there would find an x86 one (and ONNX Runtime crashes)
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
while [[ $1 != -- ]]; do
    mkdir -p "$root${1#*:}"
    mount --bind "${1%%:*}" "$root${1#*:}"
    shift
done
shift

exec env -i PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/device:/site \
    QEMU_CPU="$cpu" "$(command -v chroot)" "$root" "${launch[@]}" "$@"
