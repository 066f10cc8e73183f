//! What a boot loader offers: the default slot and a one-shot next slot.
