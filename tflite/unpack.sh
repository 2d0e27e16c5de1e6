# What the setup scripts of this folder share. $FOLDER is the folder that a script fills.

# unpack ARCHITECTURE TARGET PACKAGE...: Debian packages, fetched with a package list of their own, unpacked only.
# $SOURCES, where it is set, is a line of sources.list to take them from, in place of the machine's own.
unpack() {
    local architecture=$1 target=$2 state=$FOLDER/apt-$1 package
    shift 2
    mkdir -p "$state"/{lists/partial,cache/archives/partial,packages} "$target"
    : > "$state/status"
    local apt=(apt-get -q -o APT::Architecture="$architecture" -o APT::Architectures="$architecture"
        -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status"
        -o Dir::Cache="$state/cache" -o APT::Sandbox::User=root)
    if [ -n "${SOURCES:-}" ]; then
        echo "$SOURCES" > "$state/sources.list"
        apt+=(-o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=-)
    fi
    "${apt[@]}" update >/dev/null
    (cd "$state/packages" && "${apt[@]}" download "$@" >/dev/null)
    for package in "$state/packages"/*.deb; do dpkg -x "$package" "$target"; done
    rm -r "$state"
}
