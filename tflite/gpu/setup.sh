#!/bin/bash
# Fetches a Vulkan driver that computes on the CPU, on which LiteRT's GPU engine runs where there is no GPU, once:
#
#     bash tflite/gpu/setup.sh [swiftshader|lavapipe] [FOLDER]       default: swiftshader ~/.cache/keras_efficientformer/gpu
#
# `efficientformer inspect FILE.tflite --gpu`, `export tflite --require gpu` and the tests find it in the default folder,
# or in the one that the environment variable EFFICIENTFORMER_GPU names. SwiftShader (of Debian's Chromium, 6 MB) computes
# in float32 alone; lavapipe (of Mesa 25, 200 MB with LLVM) in float16 too, and compiles for a minute.
# Needs Debian 12 or newer (for lavapipe: 12) on amd64, and the network. Nothing is installed on the machine.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
DRIVER=${1:-swiftshader}
FOLDER=$(realpath -m "${2:-$HOME/.cache/keras_efficientformer/gpu}")

fail() { echo "setup.sh: $*" >&2; exit 1; }

[ "$DRIVER" = swiftshader ] || [ "$DRIVER" = lavapipe ] || fail "the driver is swiftshader or lavapipe, not $DRIVER"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "Linux on amd64 is needed, found $(uname -sm)"
for tool in apt-get dpkg; do command -v "$tool" >/dev/null || fail "$tool is needed: use Debian, or a container of it"; done
[ ! -e "$FOLDER/ready" ] || { echo "$FOLDER is set up already; delete it to do it again."; exit 0; }
# shellcheck source=../unpack.sh
. "$HERE/../unpack.sh"

echo "Fetching $DRIVER into $FOLDER ..."
rm -rf "$FOLDER"
mkdir -p "$FOLDER"
if [ "$DRIVER" = swiftshader ]; then
    unpack amd64 "$FOLDER/packages" chromium-common
    mv "$FOLDER"/packages/usr/lib/chromium/{libvulkan.so.1,libvk_swiftshader.so,vk_swiftshader_icd.json} "$FOLDER"
    mv "$FOLDER/vk_swiftshader_icd.json" "$FOLDER/driver.json"
    rm -r "$FOLDER/packages"
else
    unpack amd64 "$FOLDER/packages" libvulkan1 libdrm2 libelf1 libllvm15 libedit2 libbsd0 libmd0 libz3-4 libwayland-client0 \
        libx11-xcb1 libxcb1 libxcb-dri3-0 libxcb-present0 libxcb-randr0 libxcb-shm0 libxcb-sync1 libxcb-xfixes0 \
        libxshmfence1 libxau6 libxdmcp6 libicu72 libxml2 libffi8 libtinfo6 libexpat1 libzstd1
    SOURCES="deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main" \
        unpack amd64 "$FOLDER/packages" mesa-vulkan-drivers libdrm-amdgpu1
    find "$FOLDER/packages" -name '*.so*' -not -type d -exec mv -t "$FOLDER" {} +
    mv "$FOLDER/packages/usr/share/vulkan/icd.d/lvp_icd.json" "$FOLDER/driver.json"
    rm -r "$FOLDER/packages"
fi
touch "$FOLDER/ready"
echo "Done. Try: efficientformer inspect FILE.tflite --gpu"
