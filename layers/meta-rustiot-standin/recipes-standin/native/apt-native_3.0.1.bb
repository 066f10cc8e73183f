SUMMARY = "The build machine's apt"
DESCRIPTION = "Verification only. With a configuration as OE-core's recipe has it, but for the places of programs."
HOMEPAGE = "https://rustiot.example"

inherit standin_native

STANDIN_TOOLS = "apt-get:/usr/bin/apt-get apt-cache:/usr/bin/apt-cache apt-ftparchive:/usr/bin/apt-ftparchive"

do_install:append () {
    install -d ${D}${sysconfdir}/apt
    cat > ${D}${sysconfdir}/apt/apt.conf.sample << EOF
Dir "${STAGING_DIR_NATIVE}/";
Dir::State "#APTCONF#/";
Dir::State::Lists "#APTCONF#/lists/";
Dir::State::status "#ROOTFS#/var/lib/dpkg/status";
Dir::Cache "#APTCONF#/";
Dir::Cache::archives "#APTCONF#/lists/";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Bin::methods "/usr/lib/apt/methods/";
Dir::Bin::dpkg "${STAGING_BINDIR_NATIVE}/dpkg";
Dir::Etc "#APTCONF#";
Dir::Etc::Preferences "preferences";
Dir::Log "#APTCONF#/lists";
APT::Install-Recommends "true";
APT::Immediate-Configure "false";
APT
{
  Architecture "amd64";
};
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
Acquire::AllowInsecureRepositories "true";
DPkg::Options {"--root=#ROOTFS#";"--admindir=#ROOTFS#/var/lib/dpkg";"--force-all";"--no-force-overwrite";"--no-debsig";"--log=/dev/null"};
DPkg::Path "";
DPkg::Use-Pty "false";
EOF
}
