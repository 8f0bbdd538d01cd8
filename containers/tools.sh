# Engines for containers/test, which sources it with the folder for images: `docker` is podman and buildah with a
# store of their own, `apptainer` runs in a Debian that has it. They work as root in a container of this machine too,
# where neither a daemon nor cgroups can be had.
images=$1/images
store="--root $images/store --runroot $images/run --storage-driver overlay"
run_flags=
mkdir -p "$images"

install_tools() {
    local missing=() tool
    for tool in buildah podman runc mmdebstrap; do command -v $tool >/dev/null || missing+=("$tool"); done
    [ ${#missing[@]} = 0 ] && return
    [ "$(command id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

make_base() { # name
    local container
    if [ ! -s "$images/base.tar" ]; then
        mmdebstrap --quiet --mode=root --variant=minbase --include=ca-certificates --skip=output/dev bookworm \
            "$images/base.part"
        [ "$(stat -c %s "$images/base.part")" -gt 50000000 ] || return 1 # an empty root is not an error to it
        mv "$images/base.part" "$images/base.tar"
    fi
    container=$(buildah $store from scratch)
    buildah $store add -q "$container" "$images/base.tar" / >/dev/null
    # What is mounted in a build needs a place.
    mkdir -p "$images/places"/{etc,mnt/host/wheels}
    touch "$images/places"/{etc/pip.conf,mnt/host/certificates}
    buildah $store add -q "$container" "$images/places" / >/dev/null
    buildah $store config --cmd bash "$container"
    buildah $store commit -q "$container" "$1" >/dev/null
    buildah $store rm "$container" >/dev/null
}

# Where the base is no public image, there is no open network: pip in a build is told what pip here knows, the
# certificates and a folder of packages.
volumes=()
wheels=
pip_of_this_machine() {
    printf '[global]\ncert = /mnt/host/certificates\n' >"$images/pip.conf"
    cp /etc/ssl/certs/ca-certificates.crt "$images/certificates"
    wheels=$("$python" -m pip config list | sed -n "s/.*find-links='\(.*\)'/\1/p" | head -1)
    volumes=("$images/pip.conf:/etc/pip.conf:ro" "$images/certificates:/mnt/host/certificates:ro")
    if [ -d "$wheels" ]; then
        printf 'find-links = /mnt/host/wheels\n' >>"$images/pip.conf"
        volumes+=("$wheels:/mnt/host/wheels:ro")
    fi
}

docker() {
    local verb=$1; shift
    case $verb in
    build)
        buildah $store bud --layers --isolation chroot --network host --pull-never "${volumes[@]/#/--volume=}" "$@"
        ;;
    run)
        [[ " $* " == *" --network none "* ]] || set -- --network none "$@"
        podman $store --cgroup-manager cgroupfs --events-backend none --runtime runc run --pull never \
            --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 $run_flags "$@"
        ;;
    *) podman $store "$verb" "$@" ;;
    esac
}

apptainer_root=$images/apptainer
install_apptainer() {
    [ -x "$apptainer_root/usr/bin/apptainer" ] && return
    local archive
    # The archive that this machine uses already; Apptainer is in Debian's unstable.
    archive=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null |
        awk '!/security/ && ($1 == "URIs:" || $1 == "deb") && !found { found = $2 } END { print found }')
    [ -n "$archive" ] || return 1
    mmdebstrap --quiet --mode=root --variant=minbase --include=ca-certificates trixie "$apptainer_root" || return 1
    echo "deb $archive sid main" >"$apptainer_root/etc/apt/sources.list.d/sid.list"
    printf 'Package: *\nPin: release n=sid\nPin-Priority: 100\n' >"$apptainer_root/etc/apt/preferences.d/sid"
    printf 'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n' >"$apptainer_root/etc/apt/apt.conf.d/99valid"
    chroot "$apptainer_root" sh -c '
        apt-get update -qq && apt-get install -y -qq --no-install-recommends apptainer
        useradd -m builder && echo builder:100000:65536 | tee /etc/subuid >/etc/subgid' >/dev/null 2>&1 || return 1
}

# A recipe becomes an image in a user namespace, which takes an ordinary user with a range of ids.
apptainer() {
    local verb=$1 as=root flags=(); shift
    # Quick, not small: the image is thrown away.
    [ "$verb" != build ] || flags=(--force --mksquashfs-args "-comp zstd -Xcompression-level 3")
    case "$verb $*" in
    "build "*docker-archive:*) ;;
    "build "*)
        as=builder flags+=(--fakeroot)
        chown -R "$(stat -c %u "$apptainer_root/home/builder")" .
        if [ ${#volumes[@]} != 0 ]; then
            [ -s "$images/base-image.tar" ] || podman $store save -q -o "$images/base-image.tar" "$base"
            chmod a+r "$images/base-image.tar"
            flags+=(--build-arg BOOTSTRAP=docker-archive --build-arg "BASE=$images/base-image.tar" "${volumes[@]/#/--bind=}")
        fi
        ;;
    "run "* | "test "*) flags=(--no-privs) ;;
    esac
    in_apptainer_root "$as" apptainer "$verb" "${flags[@]}" "$@"
}

# With the folder of all this at its own path.
in_apptainer_root() { # user command…
    local as=$1; shift
    mkdir -p "$apptainer_root"{/.old,"$work","$wheels"}
    as=$as root=$apptainer_root shared=$work wheels=$wheels folder=$PWD unshare -m --propagation private bash -c '
        mount --rbind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
        mount --rbind "$shared" "$root$shared"
        [ ! -d "$wheels" ] || mount --rbind "$wheels" "$root$wheels"
        cp /etc/resolv.conf "$root/etc/resolv.conf"
        cd "$root" && pivot_root . .old && cd / && umount -l /.old && cd "$folder"
        [ "$as" = root ] || set -- setpriv --reuid="$as" --regid="$as" --init-groups env HOME="/home/$as" "$@"
        exec "$@"' -- "$@"
}
