#!/bin/busybox sh
# First process of a measured guest. On the second serial port it says its boot log and IMA list, in base64. On the third:
# TPM commands in, answers out, each command whole to /dev/tpm0 and each answer whole from it.

/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t securityfs securityfs /sys/kernel/security
mount -t tmpfs tmpfs /tmp
# All opened before anything is said: opening a port empties it.
exec 3<>/dev/ttyS1 4<>/dev/ttyS2 5<>/dev/tpm0
stty raw -echo 115200 <&3
stty raw -echo 115200 <&4

for list in tpm0/binary_bios_measurements ima/ascii_runtime_measurements; do
    { echo LIST; base64 "/sys/kernel/security/$list"; } >&3
done
echo END-OF-LISTS >&3

# TPM 2.0 Library, part 1, section 18: tag (2 bytes), size of all (4 bytes), command code (4 bytes), and the rest.
while dd bs=1 count=10 <&4 >/tmp/command 2>/dev/null && [ -s /tmp/command ]; do
    set -- $(od -An -tu1 -j2 -N4 /tmp/command)
    dd bs=1 count=$((($1 << 24 | $2 << 16 | $3 << 8 | $4) - 10)) <&4 >>/tmp/command 2>/dev/null
    dd if=/tmp/command bs=4096 count=1 >&5 2>/dev/null
    dd bs=4096 count=1 <&5 >&4 2>/dev/null
done
poweroff -f
