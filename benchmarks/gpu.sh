#!/usr/bin/env bash
# Half an hour on a rented GPU without network: measure, then train in the background and bring the weights back.
#
#   OUT=folder bash benchmarks/gpu.sh measure                      tests, kernels, speed in bf16 and fp16
#   OUT=folder bash benchmarks/gpu.sh text                         takes more text in, where it needs several calls
#   OUT=folder bash benchmarks/gpu.sh begin RECIPE [FLAGS ...]     takes text in, packs it, starts the training
#   OUT=folder bash benchmarks/gpu.sh wait SECONDS weights|optimizer|final
#
# Each call may be the last one, so everything that is finished is in OUT, in pieces of at most 15 MB, and a
# step that fails does not stop the others. SMALL=1 tries the same on a CPU with tiny sizes. Wheels in .whl/ are
# installed into SITE first; what lies in .text*/ is copied into data/text, and what lies in .eval/ into data/eval,
# where the recipes look for it.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?a folder for what comes back}"
SITE=${SITE:-/tmp/site}
PYTHON=${PYTHON:-python3}
RUN=${RUN:-runs/gpu}
export PYTHONPATH="$PWD/src:$SITE${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
mkdir -p "$OUT"

step() { # name, seconds, command: a log of its own, and its time in one table
  local name=$1 limit=$2 started=$SECONDS code
  shift 2
  timeout --kill-after=10 "$limit" "$@" > "$OUT/$name.log" 2>&1
  code=$?
  printf '%s\t%s\t%s s\n' "$name" "$code" "$((SECONDS - started))" | tee -a "$OUT/steps.tsv"
  return "$code"
}

install() {
  compgen -G '.whl/*.whl' > /dev/null || return 0
  step install 120 "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$SITE" .whl/*.whl
}

measure() {
  local long=64x1024,256x1024 short=64x1024 bench=("$PYTHON" benchmarks/throughput.py)
  [ "${SMALL:-}" ] && long=2x64 short=2x64 && bench+=(--rounds 1 --architecture configs/llama_ant5m.json)
  install
  step gpu 20 nvidia-smi
  # A test file may need a package that is not there.
  step tests 90 "$PYTHON" -m pytest -q -W default --continue-on-collection-errors -k "cuda or gpu" \
    tests/train tests/model
  if [ "${SMALL:-}" ]; then
    step speed 300 "${bench[@]}" --quick --shapes "$short" --json "$OUT/speed.json"
    return
  fi
  # What must be known first, as the last steps may find no time. Figures are written after each round.
  bench+=(--rounds 2)
  step bf16 240 "${bench[@]}" --precisions bf16 --quick --shapes "$long" --json "$OUT/bf16.json"
  step fp16 120 "${bench[@]}" --precisions fp16 --quick --shapes "$short" --json "$OUT/fp16.json"
  step candidates 120 "${bench[@]}" --precisions bf16 --candidates --json "$OUT/candidates.json"
}

text() { # packed text is read as it is
  local from
  mkdir -p data/text data/eval
  for from in .text*/*; do [ -f "$from" ] && cp "$from" data/text/; done
  for from in .eval/*; do [ -f "$from" ] && cp "$from" data/eval/; done
  du -sh data/text data/eval
}

begin() {
  local recipe=$1 limit=240
  [ "${SMALL:-}" ] && limit=900 # two cores instead of 16
  shift
  install
  text
  mkdir -p "$(dirname "$RUN")"
  if ! step pack "$limit" "$PYTHON" -m ant_hf pack --config "$recipe" "$@"; then
    tail -n 30 "$OUT/pack.log"
    return 1
  fi
  # Not accelerate launch, which would turn the exit code 75 of a stopped run into a 1.
  setsid nohup "$PYTHON" pretrain.py --config "$recipe" --output-dir "$RUN" "$@" > "$RUN.log" 2>&1 &
  echo $! > "$RUN.pid"
  sleep "${FIRST_LOOK:-45}"
  tail -n 30 "$RUN.log" | tee "$OUT/begin.log"
}

pieces() { # files: each in pieces that may travel
  local file
  for file in "$@"; do
    [ -f "$file" ] && split --bytes 15M --numeric-suffixes "$file" "$OUT/$(basename "$file").part"
  done
}

wait_for() {
  local deadline=$((SECONDS + $1)) what=$2 newest
  until [ "$what" = final ] && [ -f "$RUN/final/config.json" ] && grep -q '"status": "finished"' "$RUN/run.json"; do
    [ "$SECONDS" -ge "$deadline" ] && break
    kill -0 "$(cat "$RUN.pid")" 2> /dev/null || break # it has ended, and its log says why
    sleep 2
  done
  newest=$(ls -d "$RUN"/checkpoint-*/ 2> /dev/null | sort -V | while read -r folder; do
    [ -f "$folder/checkpoint.json" ] && echo "$folder"
  done | tail -n 1)
  # All that is small in one file: not many may come back.
  find "$RUN.log" "$RUN" -maxdepth 2 -type f -size -2M ! -path '*/tensorboard/*' -print0 \
    | tar -czf "$OUT/records.tgz" --null --files-from -
  case $what in
    weights) pieces "$newest/model.safetensors" ;;
    optimizer) pieces "$newest/optimizer.pt" ;;
    final) pieces "$RUN/final/model.safetensors" ;;
  esac
  echo "${newest:-no checkpoint yet}" | tee "$OUT/which.txt"
  tail -n 5 "$RUN.log"
}

case ${1:-} in
  measure) measure ;;
  text) text ;;
  begin) shift && begin "$@" ;;
  wait) wait_for "$2" "$3" ;;
  *) sed -n '2,12p' "$0" && exit 2 ;;
esac
