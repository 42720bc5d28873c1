/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * Differences between kernels. The code is written for the newest kernel; names that
 * begin with compat adapt older ones to it. Tests build and run the module on 6.1,
 * 6.12 and 7.2: the kernels of Debian 12, Debian 13 and sid.
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

/* Linux 6.12 renamed the option. */
#if !defined(CONFIG_ARCH_HAS_DMA_OPS) && !defined(CONFIG_DMA_OPS)
#error "this kernel has no dma_map_ops for each device (CONFIG_ARCH_HAS_DMA_OPS)"
#endif

/* Linux 6.4 defined the feature. */
#ifndef VIRTIO_F_NOTIFICATION_DATA
#define VIRTIO_F_NOTIFICATION_DATA 38
#endif

/* Linux 7.0 added the argument xdev: the state of a device that is gone is Unknown. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)
static inline enum xenbus_state
compat_read_driver_state(const struct xenbus_device *xdev, const char *path)
{
	return xenbus_read_driver_state(path);
}
#else
#define compat_read_driver_state xenbus_read_driver_state
#endif

/* Linux 6.13 made the data that a match function gets const. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
#define compat_const
#else
#define compat_const const
#endif

/* Linux 6.11 moved the arguments of find_vqs() for each queue into one array. */
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

/* Linux 6.19 replaced the arguments page and offset by a physical address. */
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
