// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Giving a device up: nothing is sent to it, nothing it sends counts, and its
 * driver gets errors for what it tries. Only this device is affected.
 */
#include <linux/rcupdate.h>
#include <uapi/linux/virtio_config.h>

#include "virtio_msg_xen.h"

/* In process context: the virtio core takes a lock here that interrupts do not. */
static void xvm_fault_work(struct work_struct *work)
{
	struct xvm_device *xvm = container_of(work, struct xvm_device, fault);

	if (!READ_ONCE(xvm->ready))
		return;
	virtio_break_device(&xvm->virtio->vdev);
	/* Drivers add buffers under spinlocks. When this returns, none is at it. */
	synchronize_rcu();
}

void xvm_fault_init(struct xvm_device *xvm)
{
	INIT_WORK(&xvm->fault, xvm_fault_work);
}

/* In any context; the first reason counts. */
void xvm_fail(struct xvm_device *xvm, const char *why)
{
	struct xvm_bus *bus = &xvm->bus;
	unsigned long flags;
	bool first;

	spin_lock_irqsave(&bus->lock, flags);
	first = !bus->broken;
	bus->broken = true;
	if (first)
		shim_give_up(bus->transport);
	spin_unlock_irqrestore(&bus->lock, flags);
	if (!first)
		return;

	dev_err(&xvm->xdev->dev, "device given up: %s\n", why);
	wake_up_all(&bus->wait);
	schedule_work(&xvm->fault);
}

/* Gives the device up if its status says that only a reset helps [6.5]. */
bool xvm_check_status(struct xvm_device *xvm, u32 status)
{
	if (!(status & VIRTIO_CONFIG_S_NEEDS_RESET))
		return true;
	xvm_fail(xvm, "the device reported a fault (DEVICE_NEEDS_RESET)");
	return false;
}
