#!/bin/sh
# Starts the agent, and is part of no version of it: a version that cannot even start is taken back by this script.
#
#   launch.sh BASE STATE ARGUMENT...     BASE: the environment that install.sh made; STATE: the agent's state folder
#
# An agent that updates itself puts the new version below STATE/agent/versions and points STATE/agent/current to it (agent_versions.py has
# the other half of what is described here). Without such a link BASE is started. While a version is on trial, STATE/agent/trial names it, and
# each start is counted there, durably, before anything of that version runs. The version before is current again when
#   - it was started more than 3 times in one boot of the machine, or in more than 10 boots, and has not confirmed itself;
#   - it runs and has not confirmed itself within the seconds that the trial allows: it is ended, however well it looks;
#   - its files are not all there.
# STATE/agent/failed then says so, and the version before reports it. Power cuts are not the version's fault: the count begins anew with
# each boot. Where a start cannot be counted (full disk, read-only) the version before is started and nothing is changed.
# The process stays the same (exec), so systemd watches the agent itself. It needs a shell and coreutils, no Python and no package of ours.
set -u

most_starts=3 most_boots=10
[ $# -ge 2 ] || { echo "launch: name the installed environment and the state folder" >&2; exit 64; }
base=$1 home=$2/agent
shift 2
versions=$home/versions

say() { echo "launch: $*" >&2; }
keep() { # NAME: standard input becomes the file NAME; after a return power may fail
  cat >"$home/.$1.new" && sync "$home/.$1.new" && mv -f "$home/.$1.new" "$home/$1" && sync "$home"
}
target() { # LINK -> the digest it points to, or nothing
  [ -L "$home/$1" ] || return 0
  basename "$(readlink "$home/$1")"
}
whole() { # DIGEST: whether all of that version was installed
  [ -n "$1" ] && [ -f "$versions/$1/.complete" ] && [ -x "$versions/$1/bin/python" ] && [ -f "$versions/$1/bin/bowerbird-agent" ]
}
start() { # ENVIRONMENT ARGUMENT...
  environment=$1
  shift
  export BOWERBIRD_LAUNCHER=1
  exec "$environment/bin/python" "$environment/bin/bowerbird-agent" "$@"
}
start_previous() { # ARGUMENT...
  previous=$(target previous)
  if [ "$previous" != "$now" ] && whole "$previous"; then
    start "$versions/$previous" "$@"
  fi
  start "$base" "$@"
}
take_back() { # REASON: what is current gives way to the version before, in an order that may be interrupted anywhere
  say "version $now is taken back: $1"
  printf '%s %s\n' "$now" "$1" | keep failed || return 1
  previous=$(target previous)
  if [ "$previous" != "$now" ] && whole "$previous"; then
    ln -sfn "versions/$previous" "$home/.current.new" && mv -fT "$home/.current.new" "$home/current" || return 1
  else
    rm -f "$home/current" || return 1
  fi
  rm -f "$home/trial"
  sync "$home"
}
on_trial() { # DIGEST: whether that version is on trial
  [ -f "$home/trial" ] && [ "$(sed -n 's/^digest //p' "$home/trial" 2>/dev/null)" = "$1" ]
}
watch() { # DIGEST PROCESS SECONDS: ends a version that does not confirm itself; beside it, as long as the trial lasts
  waited=0
  while [ "$waited" -lt "$3" ]; do
    sleep 1
    waited=$((waited + 1))
    kill -0 "$2" 2>/dev/null || exit 0
    on_trial "$1" || exit 0
  done
  say "version $1 has not confirmed itself within $3 s; it is ended"
  printf '%s %s\n' "$1" no_confirmation | keep failed
  kill -TERM "$2" 2>/dev/null
  waited=0
  while [ "$waited" -lt 10 ] && kill -0 "$2" 2>/dev/null; do
    sleep 1
    waited=$((waited + 1))
  done
  kill -KILL "$2" 2>/dev/null
  exit 0
}
number() { # TEXT: it, if it is a number of up to six digits; 999999, which is past every limit, otherwise
  case $1 in
    "" | *[!0-9]* | ???????*) echo 999999 ;;
    *) echo "$1" ;;
  esac
}

now=$(target current)
[ -n "$now" ] || start "$base" "$@"

if ! whole "$now"; then
  take_back incomplete
  start_previous "$@"
fi
if [ -f "$home/failed" ] && read -r failed reason <"$home/failed" && [ "$failed" = "$now" ]; then
  take_back "$reason"
  start_previous "$@"
fi
on_trial "$now" || start "$versions/$now" "$@"

# --- on trial: count this start before anything else ---
starts=0 boots=0 boot="" seconds=0
while read -r key value; do
  case $key in
    starts) starts=$(number "$value") ;;
    boots) boots=$(number "$value") ;;
    boot) boot=$value ;;
    seconds) seconds=$(number "$value") ;;
  esac
done <"$home/trial"
this_boot=${BOWERBIRD_BOOT_ID:-$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)}
if [ "$boot" = "$this_boot" ]; then
  starts=$((starts + 1))
else
  starts=1 boots=$((boots + 1))
fi
if [ "$starts" -gt "$most_starts" ]; then
  take_back crash_loop
  start_previous "$@"
fi
if [ "$boots" -gt "$most_boots" ]; then
  take_back power_cuts
  start_previous "$@"
fi
if ! printf 'digest %s\nstarts %s\nboot %s\nboots %s\nseconds %s\n' "$now" "$starts" "$this_boot" "$boots" "$seconds" | keep trial; then
  say "this start of $now cannot be counted; the version before it is started instead"
  start_previous "$@"
fi
say "version $now is on trial: start $starts of $most_starts in this boot, boot $boots of $most_boots"
if [ "$seconds" -gt 0 ]; then
  (watch "$now" $$ "$seconds" </dev/null >/dev/null &)
fi
start "$versions/$now" "$@"
