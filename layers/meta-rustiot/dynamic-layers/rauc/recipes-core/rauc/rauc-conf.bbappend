require ${@'rauc-conf-rustiot.inc' if d.getVar('DISTRO') == 'rustiot' else ''}
