//! What an image may cost at the most, so that a bad one costs an error and not the device.
//!
//! Pure. Given to the store when it is opened.

/// Bounds of everything that comes from outside. The default fits a device with a few gigabytes of flash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Largest manifest or index, in bytes.
    pub manifest: u64,
    /// Largest image configuration, in bytes.
    pub config: u64,
    /// Most layers of an image. The kernel's overlay file system takes 500.
    pub layers: usize,
    /// Largest layer, unpacked.
    pub layer_size: u64,
    /// Largest image, unpacked: the sum of its layers.
    pub image_size: u64,
    /// Most entries of a layer. Each costs about 200 bytes of memory while the layer is taken in.
    pub layer_entries: u64,
    /// Largest ratio of a layer's unpacked to its compressed size, once it is past [`Limits::ratio_from`].
    pub ratio: u64,
    /// Unpacked size up to which any ratio is fine: a small file of zeros is no bomb.
    pub ratio_from: u64,
    /// Free space that is left to others, in bytes.
    pub reserve_bytes: u64,
    /// Free inodes that are left to others.
    pub reserve_inodes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            manifest: 4 << 20,
            config: 4 << 20,
            layers: 500,
            layer_size: 16 << 30,
            image_size: 32 << 30,
            layer_entries: 200_000,
            ratio: 200,
            ratio_from: 64 << 20,
            reserve_bytes: 64 << 20,
            reserve_inodes: 1024,
        }
    }
}
