#!/usr/bin/env bash
# Installs the Bowerbird agent on a device, or a newer version beside the one that runs; with --server, the server on a machine of its own.
# Read it before you run it as root; it
#
#   makes   a user `bowerbird-agent` (server: `bowerbird`) without a login,
#           /opt/bowerbird/versions/VERSION-DIGEST, a virtual environment per version, the link /opt/bowerbird/current, and launch.sh, which
#           starts the agent and takes back a version that came over the air and does not work (server: /opt/bowerbird-server, no launcher),
#           /etc/bowerbird with agent.toml (never overwritten), /var/lib/bowerbird-agent for what the agent keeps (server:
#           /var/lib/bowerbird, its data folder, which nothing here writes to),
#           /etc/systemd/system/bowerbird-agent.service (bowerbird.service) and /etc/systemd/journald@bowerbird.conf;
#   checks  the new version before `current` points to it (imports, one inference, a durable write to the state folder), and after the
#           switch that it starts; if not, the version before stays or comes back;
#   asks    nothing, and may be run again: what is there already is left as it is.
set -euo pipefail
umask 022

usage() {
  cat <<'TEXT'
usage: install.sh --wheel FILE | --wheelhouse FOLDER  [options]
       install.sh --rollback | --uninstall [--purge]
       install.sh --server ...  the same for the server

  --wheel FILE             bowerbird's wheel; what it needs comes from the package index that pip is set up for
  --wheelhouse FOLDER      everything from this folder and nothing from a network; with bowerbird's wheel in it, unless --wheel names one
  --lock FILE | --no-lock  exact versions with hashes; default: constraints/device-pyXY.txt (server-pyXY.txt)
                           beside this script, where there is one
  --extras LIST            default: agent,opencv (server: server,opencv; add train where models are trained). Without opencv the
                           system's is used: --extras agent --system-site-packages
  --system-site-packages   let the environment see the system's Python packages (Jetson: OpenCV with GStreamer, TensorRT)
  --python PROGRAM         default: python3; 3.10 or newer

  --config FOLDER          the folder that `bowerbird devices add` made: agent.toml, bundle.json, root.json
  --model FILE             or write a first agent.toml, which begins with this model (ONNX), and with
  --device ID --site NAME --broker [mqtt://]HOST[:PORT] --camera SOURCE
                           defaults: this machine's name, site, 127.0.0.1:8883, /dev/video0

  --no-start               do not start or restart the service
  --prefix FOLDER          put everything below FOLDER, as any user: no user is made, systemd is not told
  --rollback               go back to the version before: from one that came over the air to the installed one, from that to the one
                           before it; refused, with nothing changed, where the older version cannot read what the newer has written
  --uninstall [--purge]    remove program and unit; --purge also configuration, frames not yet sent, models and the user
TEXT
}

say() { echo "install: $*"; }
die() {
  echo "install: $*" >&2
  exit 1
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mode=install role=agent prefix="" wheel="" wheelhouse="" lock=auto extras="" python=python3 config="" start=yes purge=no
device="" site=site broker=127.0.0.1 camera=/dev/video0 model=""
venv_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheel | --wheelhouse | --lock | --extras | --python | --config | --model | --device | --site | --broker | --camera | --prefix)
      [ $# -ge 2 ] || die "$1 needs a value; see --help"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --no-lock) lock="" ;;
    --system-site-packages) venv_options+=("$1") ;;
    --no-start) start=no ;;
    --server) role=server ;;
    --rollback | --uninstall) mode=${1#--} ;;
    --purge) purge=yes ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) die "unknown option $1; see --help" ;;
  esac
  shift
done

if [ "$role" = server ]; then
  user=bowerbird program=bowerbird check=bowerbird_server.install_check
  : "${extras:=server,opencv}"
  [ -z "$config$model$device" ] || die "--config, --model and --device are of the agent; the server's settings are bowerbird.toml in its data folder"
else
  user=bowerbird-agent program=bowerbird-agent check=bowerbird_agent.install_check
  : "${extras:=agent,opencv}"
fi
unit=$user.service
if [ -n "$prefix" ]; then
  mkdir -p "$prefix"
  prefix=$(cd "$prefix" && pwd)
elif [ "$(id -u)" != 0 ]; then
  die "root is needed to install for the whole machine (sudo), or --prefix FOLDER for a trial"
fi
if [ "$role" = server ]; then
  opt=$prefix/opt/bowerbird-server
else
  opt=$prefix/opt/bowerbird
fi
etc=$prefix/etc/bowerbird
state=$prefix/var/lib/$user
units=$prefix/etc/systemd/system

# Everything that loads foreign code or touches the state runs as the service's user, not as root.
as_agent() {
  if [ -n "$prefix" ]; then
    "$@"
  else
    runuser -u "$user" -- env HOME="$state" "$@"
  fi
}
systemd_runs() { [ -z "$prefix" ] && [ -d /run/systemd/system ]; }

# A link is replaced by a rename: at every moment it points to a whole version.
point() { # LINK VERSION
  ln -sfn "versions/$2" "$opt/.$1.new"
  mv -T "$opt/.$1.new" "$opt/$1"
}
version_of() { # LINK -> the version it points to, or nothing
  [ ! -L "$opt/$1" ] || basename "$(readlink "$opt/$1")"
}
# A version that came over the air gives way to the one that a person installs; the agent reports why.
put_aside() {
  [ "$role" = agent ] || return 0
  # shellcheck disable=SC2016  # the other shell expands it, as the agent's user: the folder is that user's
  as_agent sh -c '
    [ -L "$1/current" ] || exit 0
    printf "%s put_aside\n" "$(basename "$(readlink "$1/current")")" >"$1/failed" && rm -f "$1/current" "$1/trial"
  ' sh "$state/agent"
}
restart() { systemctl restart "$unit"; } # Type=notify: returns when the agent says that it is ready, or has failed

# --- one at a time; pip and the rest inherit the lock, so it is held until the last of them has ended ---
mkdir -p "$opt/versions"
exec 9>"$opt/.lock"
flock -w 3 9 || die "another installation is under way; wait for it"

if [ "$mode" = uninstall ]; then
  if systemd_runs; then
    systemctl disable --now "$unit" 2>/dev/null || true
  fi
  rm -rf "${units:?}/$unit" "${units:?}/$unit.d" "${opt:?}"
  [ -n "$(find "$units" -maxdepth 1 -name 'bowerbird*.service' 2>/dev/null)" ] || rm -f "$prefix/etc/systemd/journald@bowerbird.conf"
  if systemd_runs; then
    systemctl daemon-reload
  fi
  if [ "$purge" = yes ]; then
    [ "$role" = server ] || rm -rf "${etc:?}"
    rm -rf "${state:?}"
    if [ -z "$prefix" ] && getent passwd "$user" >/dev/null; then
      userdel "$user"
    fi
    say "removed, with configuration and state"
  else
    say "removed; $state is kept, as is $etc (--purge removes them too)"
  fi
  exit 0
fi

if [ "$mode" = rollback ] && [ "$role" = agent ] && as_agent test -L "$state/agent/current"; then
  put_aside
  if systemd_runs && [ "$start" = yes ]; then
    restart || die "$(version_of current) does not start; see journalctl --namespace=bowerbird -u $unit"
  fi
  say "the version that came over the air is put aside; $(version_of current) runs again"
  exit 0
fi
if [ "$mode" = rollback ]; then
  before=$(version_of previous)
  if [ -z "$before" ] || [ ! -d "$opt/versions/$before" ]; then
    die "there is no version before the current one"
  fi
  now=$(version_of current)
  as_agent "$opt/versions/$before/bin/python" -m "$check" "$state" ||
    die "$before does not work here, or not with what $now has written; $now stays, and nothing was changed"
  put_aside
  point current "$before"
  point previous "$now"
  if systemd_runs && [ "$start" = yes ]; then
    restart || die "$before does not start; see journalctl --namespace=bowerbird -u $unit"
  fi
  say "$before is current again; $now is kept beside it"
  exit 0
fi

# --- what is to be installed ---
if [ -n "$wheelhouse" ]; then
  [ -d "$wheelhouse" ] || die "--wheelhouse $wheelhouse is no folder"
  wheelhouse=$(cd "$wheelhouse" && pwd)
  if [ -z "$wheel" ]; then
    wheel=$(find "$wheelhouse" -maxdepth 1 -name 'bowerbird-*.whl' | sort -V | tail -n 1)
    [ -n "$wheel" ] || die "there is no bowerbird-*.whl in $wheelhouse; copy it there, or name it with --wheel"
  fi
fi
[ -n "$wheel" ] || die "name bowerbird's wheel with --wheel, or a folder that holds it with --wheelhouse; see --help"
[ -f "$wheel" ] || die "there is no $wheel"
wheel=$(cd "$(dirname "$wheel")" && pwd)/$(basename "$wheel")
version=$(basename "$wheel" | cut -d- -f2)
[[ $version =~ ^[0-9][0-9a-z.+]*$ ]] || die "$(basename "$wheel") is not named like a wheel (bowerbird-VERSION-py3-none-any.whl)"

command -v "$python" >/dev/null || die "there is no $python; apt-get install python3 python3-venv, or name one with --python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$("$python" --version) is too old; 3.10 or newer is needed"
"$python" -c 'import venv, ensurepip' 2>/dev/null || die "$python cannot make environments; apt-get install python3-venv"
if [ "$lock" = auto ]; then
  kind=$([ "$role" = server ] && echo server || echo device)
  lock=$here/constraints/$kind-$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])').txt
  [ -f "$lock" ] || lock=""
fi
[ -z "$lock" ] || [ -f "$lock" ] || die "there is no lock file $lock"
[ -z "$config" ] || [ -f "$config/agent.toml" ] || die "there is no agent.toml in $config"
[ -z "$model" ] || [ -f "$model" ] || die "there is no model $model"

# The same wheel, versions and options give the same name; anything else is another version, beside it.
digest=$({
  cat "$wheel" ${lock:+"$lock"}
  echo "$extras ${venv_options[*]:-}"
  "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
} | sha256sum | cut -c1-8)
name=$version-$digest
venv=$opt/versions/$name

# --- user and folders ---
if [ -z "$prefix" ]; then
  if ! getent passwd "$user" >/dev/null; then
    useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin "$user"
    say "made the user $user"
  fi
  if [ "$role" = agent ] && getent group video >/dev/null; then
    usermod -a -G video "$user"
  fi
  install -d -m 0755 "$opt" "$opt/versions"
  [ "$role" = server ] || install -d -m 0750 -o root -g "$user" "$etc"
  install -d -m 0700 -o "$user" -g "$user" "$state"
else
  [ "$role" = server ] || install -d -m 0750 "$etc"
  install -d -m 0700 "$state"
fi

# --- the new version, beside the current one ---
if [ -f "$venv/.complete" ]; then
  say "$name is there already"
else
  say "installing $name (the current version goes on meanwhile)"
  rm -rf "$venv" # what an interrupted installation left
  "$python" -m venv "${venv_options[@]}" "$venv"
  pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
  sources=()
  if [ -n "$wheelhouse" ]; then
    sources=(--no-index --find-links "$wheelhouse")
  fi
  # Wheels only: building would need compilers, and run foreign code as root.
  if [ -n "$lock" ]; then
    "${pip[@]}" install --only-binary :all: "${sources[@]}" --require-hashes -r "$lock" || die "pip could not install what $lock lists"
  fi
  "${pip[@]}" install --only-binary :all: "${sources[@]}" "bowerbird[$extras] @ file://$wheel" || die "pip could not install $wheel"
  if [ "$role" = agent ] && [ -n "$wheelhouse" ]; then
    # An update over the air then fetches only the packages that have changed.
    install -d -m 0755 "$venv/wheels"
    find "$wheelhouse" -maxdepth 1 -name '*.whl' -exec cp -L --reflink=auto {} "$venv/wheels/" \;
  fi
  date -u +%Y-%m-%dT%H:%M:%SZ >"$venv/.complete"
  sync -f "$venv/.complete"
fi

before=$(version_of current)
if ! as_agent "$venv/bin/python" -m "$check" "$state"; then
  [ "$before" = "$name" ] || rm -rf "$venv"
  die "$name does not work here and was not made current; ${before:-nothing} stays"
fi

# --- configuration ---
owned() { # MODE OWNER FILE: for the group of the agent
  chmod "$1" "$3"
  [ -n "$prefix" ] || chown "$2:$user" "$3"
}
if [ "$role" = server ]; then
  : # `bowerbird serve` makes what it needs in its data folder at its first start, and prints the token there
elif [ -f "$etc/agent.toml" ]; then
  say "$etc/agent.toml is left as it is"
elif [ -n "$config" ]; then
  for file in password root.json; do
    if [ -f "$config/$file" ]; then
      install -m 0600 "$config/$file" "$etc/$file"
      owned 0600 "$user" "$etc/$file"
    fi
  done
  sed "s|^state_dir = \"state\"\$|state_dir = \"$state\"|" "$config/agent.toml" >"$etc/.agent.toml.new"
  owned 0640 root "$etc/.agent.toml.new"
  mv "$etc/.agent.toml.new" "$etc/agent.toml"
  say "$etc/agent.toml is that of $config"
elif [ -n "$model" ]; then
  : "${device:=$(uname -n | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' - | sed 's/^-*//; s/-*$//')}"
  port=8883 plain=
  if [[ $broker == mqtt://* ]]; then # without TLS
    broker=${broker#mqtt://} port=1883 plain=$'\ntls = false'
  fi
  if [[ $broker =~ ^(.*):([0-9]+)$ ]]; then
    broker=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
  fi
  install -m 0640 "$model" "$etc/factory.onnx"
  owned 0640 root "$etc/factory.onnx"
  cat >"$etc/.agent.toml.new" <<TOML
# Written by install.sh. The folder that \`bowerbird devices add\` makes at the server has a bundle to enrol with and the trust for updates.
[device]
id = "$device"
site = "$site"
state_dir = "$state"

[broker]
host = "$broker"
port = $port$plain

[model]
factory = "factory.onnx"

[[cameras]]
name = "camera"
source = "$camera"
TOML
  owned 0640 root "$etc/.agent.toml.new"
  mv "$etc/.agent.toml.new" "$etc/agent.toml"
  say "wrote a first $etc/agent.toml; look at it"
else
  start=no
  say "there is no $etc/agent.toml yet: run this again with --config or --model"
fi

# --- identity ---
# Also for a device that has an agent.toml already: the bundle of a new invitation.
if [ -n "$config" ] && [ -f "$config/bundle.json" ]; then
  install -m 0600 "$config/bundle.json" "$etc/bundle.json"
  owned 0600 "$user" "$etc/bundle.json"
  if as_agent "$venv/bin/python" -m bowerbird_agent enrol "$etc/bundle.json" --config "$etc/agent.toml"; then
    rm -f "$etc/bundle.json"
  else
    say "not enrolled yet. When what stands above is put right: run this again, or bowerbird-agent enrol $etc/bundle.json as $user"
  fi
fi

# --- unit and switch ---
install -d -m 0755 "$units"
if [ "$role" = agent ]; then
  install -m 0755 "$here/launch.sh" "$opt/.launch.new"
  mv "$opt/.launch.new" "$opt/launch.sh"
fi
sed -e "s|/opt/bowerbird\\(-server\\)\\?/|$opt/|g; s|/etc/bowerbird/|$etc/|g; s|/var/lib/$user|$state|g" "$here/systemd/$unit" >"$units/.$unit.new"
chmod 0644 "$units/.$unit.new"
mv "$units/.$unit.new" "$units/$unit"
install -m 0644 "$here/systemd/journald@bowerbird.conf" "$prefix/etc/systemd/journald@bowerbird.conf"

earlier=$(version_of previous)
if [ "$before" != "$name" ]; then
  put_aside
  point current "$name"
  [ -z "$before" ] || point previous "$before"
  say "$name is current${before:+; $before is kept beside it}"
fi
if systemd_runs; then
  systemctl daemon-reload
  if [ "$start" = yes ]; then
    systemctl enable --quiet "$unit"
  fi
  if [ "$start" = yes ] && ! restart; then
    if [ -z "$before" ] || [ "$before" = "$name" ]; then
      die "$name does not start; see journalctl --namespace=bowerbird -u $unit"
    fi
    point current "$before"
    if [ -n "$earlier" ]; then
      point previous "$earlier"
    else
      rm -f "$opt/previous"
    fi
    restart || true
    rm -rf "$venv"
    die "$name does not start; $before is current again. See journalctl --namespace=bowerbird -u $unit"
  fi
fi
for old in "$opt"/versions/*; do
  case $(basename "$old") in
    "$(version_of current)" | "$(version_of previous)") ;;
    *) rm -rf "$old" ;;
  esac
done

# Camera and broker may still be missing on the day of the installation: what the doctor says is for a person.
if [ "$role" = agent ] && [ -f "$etc/agent.toml" ]; then
  as_agent "$opt/current/bin/$program" doctor --config "$etc/agent.toml" ||
    say "the doctor found something to do; afterwards: $opt/current/bin/$program doctor --config $etc/agent.toml"
fi
if [ "$role" = server ] && [ -z "$prefix" ] && [ "$start" = yes ]; then
  say "the first start writes its address and the administrator's token: journalctl --namespace=bowerbird -u $unit"
fi
say "done"
