// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The interface that the driver of a network device has made.
 */
#include <linux/netdevice.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

static int xvm_is_interface(struct device *dev, compat_const void *unused)
{
	return dev->class && strcmp(dev->class->name, "net") == 0;
}

/**
 * xvm_interface_stop() - stop an interface whose driver is being frozen from sending
 * @xvm: device, with an interface or without
 *
 * The driver stops the interface first, and then its polling, which meanwhile lets the
 * interface send again: packets would be added to queues that are gone. When the driver
 * resets the device, nothing polls any more. The driver starts the interface when it is
 * restored.
 *
 * Context: Process context. Sleeps.
 */
void xvm_interface_stop(struct xvm_device *xvm)
{
	struct device *dev = device_find_child(&xvm->virtio->vdev.dev, NULL,
					       xvm_is_interface);

	if (!dev)
		return;
	netif_tx_disable(to_net_dev(dev));
	put_device(dev);
}
