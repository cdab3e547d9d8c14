#!/usr/bin/env bash
# Run this kit on an Android phone that is connected by adb, and write the folder results/.
#
#     ./run-android.sh [gpu|cpu] [litert|delegate]
#
# litert     LiteRT's CompiledModel, as apps with LiteRT 2 run it: the tool run_model
# delegate   TensorFlow Lite's interpreter with its older GPU delegate (cpu: XNNPACK): the tool benchmark_model
#
# LITERT_VERSION   version of LiteRT's tools and libraries, such as 2.1.6 (default: latest)
# PRECISION        fp32 or fp16 arithmetic on the GPU (default: the tool's own, which is float16; litert from 2.1.6 on)
# ANDROID_SERIAL   the phone, where adb sees several
#
# Needs adb, curl and python3. Tools that lie in tools/<version>/ are not downloaded.
#
# Sources of names, flags and addresses:
#   https://github.com/google-ai-edge/LiteRT/blob/main/litert/tools/README.md         run_model, benchmark_model
#   https://github.com/google-ai-edge/LiteRT/blob/main/litert/tools/run_model.cc      --input_dir, --gpu_precision
#   https://developers.google.com/edge/litert/next/benchmark                          where LiteRT's tools are
#   https://github.com/google-ai-edge/LiteRT-CLI/blob/main/litert_cli/core/constants.py  the same by version
#   https://github.com/google-ai-edge/LiteRT/blob/main/tflite/tools/benchmark/README.md  --output_filepath, --use_gpu
set -euo pipefail
cd "$(dirname "$0")"

backend=${1:-gpu} engine=${2:-litert} version=${LITERT_VERSION:-latest} precision=${PRECISION:-}
case $backend in gpu | cpu) ;; *) echo "error: $backend is neither gpu nor cpu" >&2 && exit 2 ;; esac
case $precision in '' | fp32 | fp16) ;; *) echo "error: PRECISION is $precision, not fp32 or fp16" >&2 && exit 2 ;; esac
case $engine in
  litert)
    from=https://storage.googleapis.com/litert/binaries/$version/android_arm64
    names=(run_model benchmark_model libLiteRt.so libLiteRtClGlAccelerator.so)
    addresses=("${names[@]/#/$from/}")
    ;;
  delegate)
    version=nightly
    from=https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/lite/tools/nightly/latest
    names=(benchmark_model)
    addresses=("$from/android_aarch64_benchmark_model")
    ;;
  *) echo "error: $engine is neither litert nor delegate" >&2 && exit 2 ;;
esac
if [ -e results ]; then
  echo "error: results exists; nothing was changed. Move it away first" >&2
  exit 2
fi
if ! adb get-state >/dev/null; then
  echo "error: adb sees no phone; connect one with USB debugging on, or name it in ANDROID_SERIAL" >&2
  exit 1
fi

tools=tools/$engine-$version
mkdir -p "$tools"
for place in "${!names[@]}"; do
  tool=$tools/${names[$place]}
  if [ ! -e "$tool" ]; then
    echo "download ${addresses[$place]}"
    curl --fail --location --silent --show-error -o "$tool.part" "${addresses[$place]}"
    mv "$tool.part" "$tool"
  fi
done

phone=/data/local/tmp/md-export-kit
# Without a terminal for its input, adb would read the loop's.
on_phone() { adb shell "$@" </dev/null; }
property() { on_phone getprop "$1" | tr -d '\r\n'; }

on_phone "rm -rf $phone && mkdir -p $phone"
adb push "${names[@]/#/$tools/}" $phone >/dev/null
on_phone "cd $phone && chmod 755 *"

mkdir results
runtime="LiteRT $version, run_model"
[ "$engine" = litert ] || runtime="TensorFlow Lite nightly, benchmark_model"
python3 android.py device \
  "device=$(property ro.product.manufacturer) $(property ro.product.model), $(property ro.soc.model)" \
  "os=Android $(property ro.build.version.release), $(property ro.build.id)" \
  "driver=$(on_phone dumpsys SurfaceFlinger | sed -n 's/^.*GLES: //p' | head -n 1 | tr -d '\r' || true)" \
  "runtime=$runtime, SHA-256 $(python3 android.py sha256 "${names[@]/#/$tools/}")" \
  "backend=$backend${precision:+ $precision}"

# One line for each case: component, file, case, most values of an output, flags for benchmark_model.
python3 android.py plan >results/plan.tsv
last='' failed=''
while IFS=$'\t' read -r component file name values flags; do
  [ "$component" != "$failed" ] || continue
  log=results/$component/$name/log.txt
  mkdir -p "results/$component/$name"
  if [ "$component" != "$last" ]; then
    echo "$component"
    on_phone "rm -rf $phone/files $phone/inputs && mkdir -p $phone/files"
    adb push "files/$file" "$phone/files/$file" >/dev/null
    adb push "inputs/$component" "$phone/inputs" >/dev/null
    # run_model reads <name>.raw.
    on_phone "cd $phone/inputs && for file in */*.bin; do mv \$file \${file%.bin}.raw; done"
    last=$component
  fi
  if [ "$engine" = litert ]; then
    # The tool writes no file of outputs; with compare_numerical it prints as many values as sample_size tells.
    command="./run_model --graph=files/$file --accelerator=$backend --input_dir=inputs/$name --print_tensors=true"
    command+=" --compare_numerical=true --sample_size=$values${precision:+ --gpu_precision=$precision}"
  else
    command="./benchmark_model --graph=files/$file --num_runs=1 --warmup_runs=1 --use_xnnpack=true"
    command+=" --output_filepath=made.bin ${flags//@/inputs/$name}"
    [ "$backend" = cpu ] || command+=" --use_gpu=true"
    [ "$precision" != fp32 ] || command+=" --gpu_precision_loss_allowed=false"
  fi
  made=$log
  # The outputs of the case before must not pass for this one's.
  if ! on_phone "cd $phone && rm -f made.bin && LD_LIBRARY_PATH=$phone $command" >"$log" 2>&1; then
    made=''
  elif [ "$engine" = delegate ]; then
    made=results/$component/$name/made
    adb pull "$phone/made.bin" "$made" </dev/null >/dev/null 2>>"$log" || made=''
  fi
  if [ -z "$made" ] || ! python3 android.py "$engine" "$component" "$name" "$made" 2>>"$log"; then
    echo "$component did not run; see $log" >&2
    tail -n 5 "$log" >"results/$component/failed.txt"
    failed=$component
    continue
  fi
  rm -f "$log" "results/$component/$name/made"
  if [ "$name" = 000 ]; then
    # Latency, to read. With require_full_delegation it fails where an op is left to the CPU.
    gpu=''
    [ "$backend" = cpu ] || gpu='--use_gpu=true --require_full_delegation=true'
    on_phone "cd $phone && LD_LIBRARY_PATH=$phone ./benchmark_model --graph=files/$file --num_runs=10 $gpu" \
      >"results/$component/benchmark.txt" 2>&1 || echo "benchmark_model failed" >>"results/$component/benchmark.txt"
  fi
done <results/plan.tsv
rm results/plan.tsv
on_phone "rm -rf $phone"
echo "results: copy this folder to the computer with the export, and run: md-export device-report OUT results"
