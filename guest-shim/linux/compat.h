/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * What differs between kernels, and nothing else. The code is written for the
 * newest; older ones are made to look like it here, by names that begin with
 * compat. Built and run on 6.1, 6.12 and 7.2: Debian 12's, Debian 13's, sid's.
 */
#ifndef COMPAT_H
#define COMPAT_H

#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/virtio_config.h>
#include <xen/xenbus.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "kernels before 6.1 are not supported"
#endif

/* 6.12 renamed the option. */
#if !defined(CONFIG_ARCH_HAS_DMA_OPS) && !defined(CONFIG_DMA_OPS)
#error "this kernel has no dma_map_ops for each device (CONFIG_ARCH_HAS_DMA_OPS)"
#endif

/* 6.4 knows the feature. */
#ifndef VIRTIO_F_NOTIFICATION_DATA
#define VIRTIO_F_NOTIFICATION_DATA 38
#endif

/* 7.0 wants to know whose state is read: that of a device that is gone is Unknown. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)
static inline enum xenbus_state
compat_read_driver_state(const struct xenbus_device *xdev, const char *path)
{
	return xenbus_read_driver_state(path);
}
#else
#define compat_read_driver_state xenbus_read_driver_state
#endif

/* 6.11 put what find_vqs() is told of each queue into one array. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
struct virtqueue_info {
	const char *name;
	vq_callback_t *callback;
	bool ctx;
};
#endif

int xvm_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
		 struct virtqueue *vqs[], struct virtqueue_info info[],
		 struct irq_affinity *affinity);

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
static inline int compat_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
				  struct virtqueue *vqs[],
				  vq_callback_t *callbacks[],
				  const char * const names[], const bool *ctx,
				  struct irq_affinity *affinity)
{
	struct virtqueue_info *info;
	unsigned int i;
	int err;

	info = kcalloc(nvqs, sizeof(*info), GFP_KERNEL);
	if (!info)
		return -ENOMEM;
	for (i = 0; i < nvqs; i++) {
		info[i].name = names[i];
		info[i].callback = callbacks[i];
		info[i].ctx = ctx && ctx[i];
	}
	err = xvm_find_vqs(vdev, nvqs, vqs, info, affinity);
	kfree(info);
	return err;
}
#else
#define compat_find_vqs xvm_find_vqs
#endif

/* 6.19 replaced a page and an offset in it by a physical address. */
dma_addr_t xvm_dma_map_phys(struct device *dev, phys_addr_t phys, size_t size,
			    enum dma_data_direction dir, unsigned long attrs);
void xvm_dma_unmap_phys(struct device *dev, dma_addr_t handle, size_t size,
			enum dma_data_direction dir, unsigned long attrs);

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 19, 0)
static inline dma_addr_t compat_map_page(struct device *dev, struct page *page,
					 unsigned long offset, size_t size,
					 enum dma_data_direction dir,
					 unsigned long attrs)
{
	return xvm_dma_map_phys(dev, page_to_phys(page) + offset, size, dir,
				attrs);
}

#define COMPAT_MAP_OPS \
	.map_page = compat_map_page, .unmap_page = xvm_dma_unmap_phys
#else
#define COMPAT_MAP_OPS \
	.map_phys = xvm_dma_map_phys, .unmap_phys = xvm_dma_unmap_phys
#endif

#endif /* COMPAT_H */
