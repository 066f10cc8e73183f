require ${@'rustiot-kernel.inc' if d.getVar('DISTRO') == 'rustiot' else ''}
