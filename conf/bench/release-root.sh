# shellcheck shell=bash
# Builds one root image from Debian packages of chosen versions, for `rustiot bench delta`. Runs in the toolbox.
# Arguments: APT LIST OUT KERNEL VERSIONS EXCEPT PACKAGE...
#   APT       directory for apt's state; kept between images
#   LIST      file with lines for sources.list
#   OUT       the image
#   KERNEL    package of the kernel
#   VERSIONS  newest or oldest: which version of each package, of those that the archive offers
#   EXCEPT    packages, with commas between them, that get the other one
set -euo pipefail
apt=$1 list=$2 out=$3 kernel=$4 versions=$5 except=,$6,
shift 6
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
: > "$apt/status"
cat > "$apt/apt.conf" <<END
Dir::State::Lists "$apt/lists";
Dir::State::Status "$apt/status";
Dir::Etc::SourceList "$list";
Dir::Etc::SourceParts "/dev/null";
Dir::Cache "$apt";
Dir::Cache::Archives "$apt/archives";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
END
export APT_CONFIG=$apt/apt.conf
cmp -s "$list" "$apt/updated" || { apt-get -q update; cp "$list" "$apt/updated"; }

# The kernel itself, where its package is the name for the newest one.
image=$(apt-cache depends "$kernel" | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
image=${image:-$kernel}
# Names by a simulated installation, versions by what the archive offers.
names=$(apt-get -q install --simulate "$@" "$kernel" | sed -n 's/^Inst \([^ :]*\).*/\1/p' | sort)
wanted=()
for name in $names; do
  if [[ $name = linux-image-* && $name != "$image" ]]; then continue; fi
  mapfile -t offered < <(apt-cache madison "$name" | awk -F' *\\| *' '{ print $2 }' | awk '!seen[$0]++')
  newest=${offered[0]} oldest=${offered[-1]}
  pick=$versions
  if [[ $except = *,$name,* ]]; then
    if [ "$versions" = newest ]; then pick=oldest; else pick=newest; fi
  fi
  if [ "$pick" = newest ]; then wanted+=("$name=$newest"); else wanted+=("$name=$oldest"); fi
done
(cd "$apt/archives" && apt-get -q download "${wanted[@]}")

work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
for package in "${wanted[@]}"; do
  name=${package%%=*} version=${package#*=}
  deb=("$apt/archives/${name}_${version//:/%3a}_"*.deb)
  dpkg-deb --fsys-tarfile "${deb[0]}" | tar --extract --keep-directory-symlink -p --numeric-owner -C "$root"
done
rm -rf "$root"/usr/share/{doc,man,info,locale,lintian,bug,bash-completion} "$root"/{dev,proc,sys,run,tmp,var}
# A gateway's drivers: no graphics, sound, radio, cameras, clusters, laboratory equipment.
for dir in sound drivers/{gpu,media,infiniband,staging,iio,scsi,comedi,net/wireless,accel,input,hid,hwmon,isdn,video,platform,mtd,edac,parport}; do
  rm -rf "$root"/usr/lib/modules/*/kernel/"$dir"
done
# As a device has them: modules uncompressed, the kernel too.
find "$root/usr/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r -P "$(nproc)" xz -d
# Signatures of modules add nothing under dm-verity and would be half of a kernel's delta: the image builder cuts them
# off too (module_file.rs). Behind the signature stand its length (big-endian) and a mark of 28 bytes.
find "$root/usr/lib/modules" -name '*.ko' -size +1 | while read -r module; do
  [ "$(tail -c 28 "$module")" = "~Module signature appended~" ] || continue
  size=$(stat -c %s "$module")
  length=$((16#$(tail -c 32 "$module" | head -c 4 | od -An -t x1 | tr -d ' \n')))
  truncate -s $((size - 40 - length)) "$module"
done
for image in "$root"/boot/vmlinuz-*; do
  number() { od -An -v -j "$1" -N "$2" -t "u$2" "$image" | tr -d ' '; }
  start=$(( ($(number 497 1) + 1) * 512 + $(number 584 4) )) size=$(number 588 4)
  tail -c "+$((start + 1))" "$image" | head -c "$size" > "$work/payload" || true
  case $(od -An -N4 -t x1 "$work/payload" | tr -d ' ') in
    fd377a58) xz -dc --single-stream < "$work/payload" > "${image/vmlinuz/vmlinux}" 2>/dev/null || true ;;
    28b52ffd) zstd -dc < "$work/payload" > "${image/vmlinuz/vmlinux}" 2>/dev/null || true ;;
  esac
  if [ -s "${image/vmlinuz/vmlinux}" ]; then rm "$image"; else rm -f "${image/vmlinuz/vmlinux}"; fi
done
# One name for all versions, as the slot of a device has it: what differs is the content.
for image in "$root"/boot/vmlinu*; do mv "$image" "$root/boot/$(basename "${image%%-[0-9]*}")"; done
rm -f "$root"/boot/{System.map,config}-*
export SOURCE_DATE_EPOCH=1700000000
mkfs.erofs -T1700000000 -U00000000-0000-4000-8000-000000000000 --all-root -x-1 --quiet "$work/image" "$root"
mv "$work/image" "$out"
printf '%s\n' "${wanted[@]}" > "$out.packages"
