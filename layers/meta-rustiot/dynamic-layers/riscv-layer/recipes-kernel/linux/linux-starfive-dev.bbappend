require ${@'recipes-kernel/linux/rustiot-kernel-plain.inc' if d.getVar('DISTRO') == 'rustiot' else ''}
