# shellcheck shell=bash
# flag NAME ARGUMENT...: the value of --NAME among arguments, with a space or =, with - or _; the last one counts.
flag() {
  local name=$1 value='' before='' key
  shift
  for argument in "$@"; do
    key=${argument%%=*} key=${key//-/_}
    [[ $before != "__$name" ]] || value=$argument
    [[ $argument != *=* || $key != "__$name" ]] || value=${argument#*=}
    before=$key
    [[ $argument != *=* ]] || before=''
  done
  echo "$value"
}
