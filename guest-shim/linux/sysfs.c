// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Attributes of a device in sysfs, all read-only.
 */
#include <linux/device.h>
#include <linux/sysfs.h>

#include "virtio_msg_xen.h"

static ssize_t bounce_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct xvm_device *xvm = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%d\n", !!xvm->dma.bounce.pages);
}
static DEVICE_ATTR_RO(bounce);

static ssize_t grants_outstanding_show(struct device *dev,
				       struct device_attribute *attr, char *buf)
{
	struct xvm_device *xvm = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%u\n", xvm_dma_outstanding(xvm));
}
static DEVICE_ATTR_RO(grants_outstanding);

static ssize_t messages_dropped_show(struct device *dev,
				     struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", xvm_bus_dropped(dev_get_drvdata(dev)));
}
static DEVICE_ATTR_RO(messages_dropped);

static ssize_t pool_show(struct device *dev, struct device_attribute *attr,
			 char *buf)
{
	struct xvm_pool_usage usage;

	xvm_pool_usage(dev_get_drvdata(dev), &usage);
	return sysfs_emit(buf, "shared %u\nin_use %u\nfallbacks %u\nretries %u\ngrowths %u\n",
			  usage.shared, usage.in_use, usage.fallbacks, usage.retries,
			  usage.growths);
}
static DEVICE_ATTR_RO(pool);

static struct attribute *xvm_attrs[] = {
	&dev_attr_bounce.attr,
	&dev_attr_grants_outstanding.attr,
	&dev_attr_messages_dropped.attr,
	&dev_attr_pool.attr,
	NULL,
};

static const struct attribute_group xvm_group = {
	.attrs = xvm_attrs,
};

/* The core of the driver model creates these when the driver is bound. */
const struct attribute_group *xvm_groups[] = {
	&xvm_group,
	NULL,
};
