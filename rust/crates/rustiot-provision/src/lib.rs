//! First boot and every boot: file systems, identity, configuration.
