require ${@'recipes-bsp/u-boot/rustiot-uboot.inc' if (d.getVar('DISTRO'), d.getVar('RUSTIOT_LOADER')) == ('rustiot', 'uboot') and d.getVar('RUSTIOT_BOARD') else ''}
