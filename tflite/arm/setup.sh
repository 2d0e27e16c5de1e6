#!/bin/bash
# Sets up the emulated Arm CPUs of `efficientformer benchmark tflite FILE --emulate CPU`, once:
#
#     bash tflite/arm/setup.sh [FOLDER]          default: ~/.cache/keras_efficientformer/arm
#
# qemu-user runs the arm64 build of LiteRT, so the kernels are those of a phone; count.c counts their instructions.
# Needs Debian 12 (bookworm) on amd64, as machine or container, with gcc, binutils, unzip and python3 with pip, and the
# network. Everything lands in FOLDER (some 250 MB); nothing is installed on the machine.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
FOLDER=$(realpath -m "${1:-$HOME/.cache/keras_efficientformer/arm}")
LITERT=${LITERT:-2.3.0}
NUMPY=${NUMPY:-2.4.6}
PYTHON=${PYTHON:-python3}

fail() { echo "setup.sh: $*" >&2; exit 1; }

# shellcheck source=/dev/null
. /etc/os-release
[ "${VERSION_CODENAME:-}" = bookworm ] && [ "$(uname -m)" = x86_64 ] \
    || fail "Debian 12 (bookworm) on amd64 is needed, found ${PRETTY_NAME:-$(uname)} on $(uname -m). Use a container."
for tool in gcc nm c++filt unzip apt-get dpkg "$PYTHON"; do command -v "$tool" >/dev/null || fail "$tool is needed"; done
[ ! -e "$FOLDER/ready" ] || { echo "$FOLDER is set up already; delete it to do it again."; exit 0; }

# shellcheck source=../unpack.sh
. "$HERE/../unpack.sh"

# describe ROOT PART FEATURES: qemu 7.2 shows programs the real machine's /proc/cpuinfo, by which LiteRT would choose
# its kernels; a file under the root is seen instead.
describe() {
    local root=$1 cpu=$1/sys/devices/system/cpu name
    mkdir -p "$root/proc" "$cpu/cpu0/topology" "$cpu/cpu0/cpufreq"
    printf '%s\t: %s\n' processor 0 BogoMIPS 100.00 Features "$3" 'CPU implementer' 0x41 'CPU architecture' 8 \
        'CPU variant' 0x4 'CPU part' "$2" 'CPU revision' 1 > "$root/proc/cpuinfo"
    for name in possible present online; do echo 0 > "$cpu/$name"; done
    for name in physical_package_id cluster_cpus_list core_siblings_list; do echo 0 > "$cpu/cpu0/topology/$name"; done
    echo 7 > "$cpu/kernel_max"
    echo 2000000 > "$cpu/cpu0/cpufreq/cpuinfo_max_freq"
    echo 500000 > "$cpu/cpu0/cpufreq/cpuinfo_min_freq"
}

echo "Fetching qemu, an arm64 Python and LiteRT $LITERT into $FOLDER ..."
rm -rf "$FOLDER"
mkdir -p "$FOLDER"/{wheels,site}
unpack amd64 "$FOLDER/qemu" qemu-user libcapstone4 liburing2
unpack arm64 "$FOLDER/root" python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 \
    zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libuuid1 libcrypt1
"$PYTHON" -m pip download --quiet --only-binary=:all: --no-deps --dest "$FOLDER/wheels" --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    --platform manylinux_2_17_aarch64 "ai-edge-litert==$LITERT" "numpy==$NUMPY"
for wheel in "$FOLDER"/wheels/*.whl; do unzip -qo "$wheel" -d "$FOLDER/site"; done
rm -r "$FOLDER/wheels"

BASE="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
NEWER="$BASE atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
while read -r name part features; do
    cp -al "$FOLDER/root" "$FOLDER/root-$name"
    describe "$FOLDER/root-$name" "$part" "$features"
done <<< "cortex-a53 0xd03 $BASE
cortex-a76 0xd0b $NEWER
neoverse-n1 0xd0c $NEWER
max 0xd4d $NEWER"

gcc -O2 -fPIC -shared -o "$FOLDER/libcount.so" "$HERE/count.c"
cp "$HERE/infer.py" "$FOLDER/infer.py"
touch "$FOLDER/ready"
echo "Done. Try: efficientformer benchmark tflite FILE.tflite --emulate cortex-a76"
