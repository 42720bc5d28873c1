// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Gives a device up: the module sends nothing to it, ignores its messages, and
 * returns errors to its driver. Other devices go on.
 */
#include <linux/rcupdate.h>
#include <uapi/linux/virtio_config.h>

#include "virtio_msg_xen.h"

/*
 * Notifies the virtio core. In process context: virtio_break_device() takes a spinlock
 * without disabling interrupts.
 */
static void xvm_fault_work(struct work_struct *work)
{
	struct xvm_device *xvm = container_of(work, struct xvm_device, fault);

	if (!READ_ONCE(xvm->ready))
		return;
	virtio_break_device(&xvm->virtio->vdev);
	/* Drivers add buffers under spinlocks: wait until none still does. */
	synchronize_rcu();
}

/**
 * xvm_fault_init() - prepare a device for xvm_fail()
 * @xvm: device
 */
void xvm_fault_init(struct xvm_device *xvm)
{
	INIT_WORK(&xvm->fault, xvm_fault_work);
}

/**
 * xvm_fail() - give a device up
 * @xvm: device
 * @why: reason, for the log
 *
 * Only the first call for a connection has an effect.
 *
 * Context: Any context. Takes the bus lock.
 */
void xvm_fail(struct xvm_device *xvm, const char *why)
{
	struct xvm_bus *bus = &xvm->bus;
	unsigned long flags;
	bool first, kept;

	spin_lock_irqsave(&bus->lock, flags);
	first = !bus->broken;
	kept = xvm->kept;
	bus->broken = true;
	if (first)
		shim_give_up(bus->transport);
	spin_unlock_irqrestore(&bus->lock, flags);
	if (!first)
		return;

	wake_up_all(&bus->wait);
	/* The driver waits, perhaps for yet another backend (reconnect.c). */
	if (kept) {
		dev_err(&xvm->xdev->dev, "cannot go on with this backend: %s\n", why);
		return;
	}
	dev_err(&xvm->xdev->dev, "device given up: %s\n", why);
	schedule_work(&xvm->fault);
}

/**
 * xvm_check_status() - give a device up if its status asks for a reset [6.5]
 * @xvm: device
 * @status: device status
 *
 * Return: false if the device was given up, else true.
 * Context: Any context. Takes the bus lock.
 */
bool xvm_check_status(struct xvm_device *xvm, u32 status)
{
	if (!(status & VIRTIO_CONFIG_S_NEEDS_RESET))
		return true;
	xvm_fail(xvm, "the device reported a fault (DEVICE_NEEDS_RESET)");
	return false;
}
