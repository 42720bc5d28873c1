/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * What differs between kernels, and nothing else.
 */
#ifndef COMPAT_H
#define COMPAT_H

#include <linux/version.h>
#include <linux/virtio_config.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
#error "kernels before 6.11 hand find_vqs() its queues in another form"
#endif

#ifndef CONFIG_ARCH_HAS_DMA_OPS
#error "this kernel has no dma_map_ops for each device (CONFIG_ARCH_HAS_DMA_OPS)"
#endif

#endif /* COMPAT_H */
