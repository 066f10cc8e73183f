# RUSTIOT_STANDIN_QUICK = "1": a debug build in minutes, for looking at what comes after; its size says nothing.
require ${@bb.utils.contains('RUSTIOT_STANDIN_QUICK', '1', 'rustiot-device-quick.inc', '', d)}
