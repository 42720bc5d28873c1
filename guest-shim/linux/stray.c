// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * What libxl puts into the device tree of a guest on Arm for each virtio disk: a
 * "virtio,mmio" node, whose registers nobody emulates. A driver that reads them faults.
 */
#include <linux/of.h>
#include <linux/of_platform.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

#include "virtio_msg_xen.h"

#ifdef CONFIG_OF
/* The address comes from the backend, which must not choose a device that works. */
static int xvm_is_stray(struct device *dev, const void *base)
{
	struct resource *registers;

	if (!dev->of_node || !of_device_is_compatible(dev->of_node, "virtio,mmio"))
		return 0;
	registers = platform_get_resource(to_platform_device(dev), IORESOURCE_MEM, 0);
	return !dev->driver && registers && registers->start == *(const u64 *)base;
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
 * @xvm: device
 *
 * It does no harm until virtio_mmio is loaded and, where the node has an IOMMU, waits
 * for that in vain.
 *
 * Context: Process context. Sleeps.
 */
void xvm_stray_remove(struct xvm_device *xvm)
{
	struct xenbus_device *xdev = xvm->xdev;
	u64 base = xvm_stray_base(xdev);
	struct device *dev;

	if (!base)
		return;
	dev = bus_find_device(&platform_bus_type, NULL, &base, xvm_is_stray);
	if (!dev)
		return;
	dev_info(&xdev->dev, "removing %s, which nobody emulates\n", dev_name(dev));
	of_platform_device_destroy(dev, NULL);
	put_device(dev);
}
#else
void xvm_stray_remove(struct xvm_device *xvm)
{
}
#endif
