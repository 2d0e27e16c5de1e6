#!/bin/bash
# Fetches the Kotlin compiler of the lock file, 90 MB, once, so that tests can type-check the Android sample:
#
#     bash tests/apps/kotlin/setup.sh [FOLDER]       default: ~/.cache/keras_efficientformer/kotlin
#
# tests/apps/test_android_kit.py finds it in the default folder, or in the one that the environment variable
# EFFICIENTFORMER_KOTLIN names. Needs npm and Java 17 or newer: Debian's packages npm and openjdk-17-jre-headless.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
FOLDER=$(realpath -m "${1:-$HOME/.cache/keras_efficientformer/kotlin}")

for tool in npm java; do
    command -v "$tool" >/dev/null || { echo "setup.sh: $tool is needed" >&2; exit 1; }
done
if cmp -s "$HERE/package-lock.json" "$FOLDER/package-lock.json" && [ -e "$FOLDER/ready" ]; then
    exit 0
fi
echo "Fetching the Kotlin compiler into $FOLDER ..."
rm -rf "$FOLDER"
mkdir -p "$FOLDER"
cp "$HERE"/package{,-lock}.json "$FOLDER"
(cd "$FOLDER" && npm ci --ignore-scripts --no-audit --no-fund >/dev/null)
touch "$FOLDER/ready"
