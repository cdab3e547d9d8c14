#!/bin/sh
# The last step, on a Mac with Xcode: compiles the packages beside this script and gathers what Apple's Swift package
# ml-stable-diffusion reads in the folder Resources. Run it again at will: it replaces what it made before.
set -eu
cd -- "$(dirname -- "$0")"

fail() {
    echo "finish-on-mac.sh: $1" >&2
    exit 1
}

packages="TextEncoder Unet VAEDecoder"
files="vocab.json merges.txt schedule.json"

missing=""
for name in $packages; do
    [ -d "$name.mlpackage" ] || missing="$missing $name.mlpackage"
done
for file in $files; do
    [ -f "$file" ] || missing="$missing $file"
done
[ -z "$missing" ] || fail "missing beside this script:$missing; export all components with md-export coreml --layout swift"

xcrun --find coremlcompiler >/dev/null 2>&1 ||
    fail "coremlcompiler is missing; install Xcode on this Mac and select it with xcode-select"

mkdir -p Resources
for name in $packages; do
    rm -rf "Resources/$name.mlmodelc"
    xcrun coremlcompiler compile "$name.mlpackage" Resources
    [ -d "Resources/$name.mlmodelc" ] || fail "coremlcompiler left no Resources/$name.mlmodelc"
done
for file in $files; do
    cp "$file" Resources/
done
echo "Resources is complete: add it to the app, and give its URL to the Swift package"
