require ${@'recipes-kernel/linux/rustiot-kernel.inc' if d.getVar('DISTRO') == 'rustiot' else ''}
