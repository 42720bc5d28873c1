// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * What libxl puts into the device tree of a guest on Arm for each virtio disk: a
 * "virtio,mmio" node, whose registers nobody emulates. A driver that reads them faults.
 */
#include <linux/mutex.h>
#include <linux/of.h>
#include <linux/of_platform.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

#include "virtio_msg_xen.h"

#ifdef CONFIG_OF
/* What libxl says of the device, by its backend's keys. */
struct xvm_stray {
	u64 base;
	u32 backend;
};

/* Devices of one backend may be probed at the same time, with the same address. */
static DEFINE_MUTEX(xvm_stray_lock);

/*
 * The domain that emulates a device: libxl names it where the device goes through Xen's
 * IOMMU, and otherwise it is Dom0.
 */
static u32 xvm_emulator(struct device_node *node)
{
	struct of_phandle_args iommu;

	if (of_parse_phandle_with_args(node, "iommus", "#iommu-cells", 0, &iommu))
		return 0;
	of_node_put(iommu.np);
	return iommu.args_count ? iommu.args[0] : 0;
}

/*
 * The address comes from the backend, which must not choose a device of another one, or
 * one that works.
 */
static int xvm_is_stray(struct device *dev, const void *data)
{
	const struct xvm_stray *stray = data;
	struct resource *registers;

	if (!dev->of_node || !of_device_is_compatible(dev->of_node, "virtio,mmio"))
		return 0;
	registers = platform_get_resource(to_platform_device(dev), IORESOURCE_MEM, 0);
	return !dev->driver && registers && registers->start == stray->base &&
	       xvm_emulator(dev->of_node) == stray->backend;
}

/* The address of the registers, decimal for a disk, otherwise hexadecimal; 0: none. */
static u64 xvm_stray_base(const struct xenbus_device *xdev)
{
	char *text = xenbus_read(XBT_NIL, xdev->otherend, "base", NULL);
	u64 base;

	if (IS_ERR(text))
		return 0;
	if (kstrtou64(text, 0, &base))
		base = 0;
	kfree(text);
	return base;
}

/**
 * xvm_stray_remove() - remove the platform device that stands for this one
 * @xvm: device, whose backend speaks virtio-msg: it emulates nothing
 *
 * It does no harm until virtio_mmio is loaded and, where the node has an IOMMU, waits
 * for that in vain.
 *
 * Context: Process context. Sleeps.
 */
void xvm_stray_remove(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	struct xvm_stray stray = {
		.base = xvm_stray_base(xdev),
		.backend = xdev->otherend_id,
	};
	struct device *dev;

	if (!stray.base)
		return;
	mutex_lock(&xvm_stray_lock);
	dev = bus_find_device(&platform_bus_type, NULL, &stray, xvm_is_stray);
	if (dev) {
		dev_info(&xdev->dev, "removing %s, which nobody emulates\n", dev_name(dev));
		of_platform_device_destroy(dev, NULL);
		put_device(dev);
	}
	mutex_unlock(&xvm_stray_lock);
}
#else
void xvm_stray_remove(struct xvm_device *xvm)
{
}
#endif
