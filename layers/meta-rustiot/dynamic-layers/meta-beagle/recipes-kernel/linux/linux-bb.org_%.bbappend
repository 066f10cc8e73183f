require ${@'recipes-kernel/linux/rustiot-kernel-ti.inc' if d.getVar('DISTRO') == 'rustiot' else ''}
