// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Registers devices in the order in which xenbus probed them, which is the order of
 * the guest's configuration: the first disk is /dev/vda, whichever backend answers
 * first. A backend that does not answer delays the other devices but does not stop
 * them.
 */
#include <linux/completion.h>
#include <linux/jiffies.h>
#include <linux/list.h>

#include "virtio_msg_xen.h"

/* How long a device waits for one of the devices before it. */
#define START_TIMEOUT (5 * HZ)

/* Devices that are probed and not yet registered, in this order. */
static LIST_HEAD(xvm_starting);
static unsigned int xvm_departures;	/* devices that left the list */
static DEFINE_SPINLOCK(xvm_starting_lock);
static DECLARE_WAIT_QUEUE_HEAD(xvm_starting_changed);

/* Completed when xenbus has probed the devices that it found at registration. */
static DECLARE_COMPLETION(xvm_all_found);

/**
 * xvm_probe_order_init() - prepare a device for the functions below
 * @xvm: device
 */
void xvm_probe_order_init(struct xvm_device *xvm)
{
	INIT_LIST_HEAD(&xvm->starting);
}

/**
 * xvm_probe_order_all_found() - end xvm_probe_order_wait_all_found()
 *
 * Called when xenbus has probed all devices that were there when the driver was
 * registered. May be called again.
 */
void xvm_probe_order_all_found(void)
{
	complete_all(&xvm_all_found);
}

/**
 * xvm_probe_order_wait_all_found() - wait until all devices are probed
 *
 * For a device that is about to take a resource which it can do without and
 * others cannot.
 *
 * Context: Process context. Waits for a limited time.
 */
void xvm_probe_order_wait_all_found(void)
{
	wait_for_completion_timeout(&xvm_all_found, START_TIMEOUT);
}

/**
 * xvm_probe_order_enter() - append a device to those that are starting
 * @xvm: device; if it is in the list already, it becomes the last
 *
 * Context: Process context.
 */
void xvm_probe_order_enter(struct xvm_device *xvm)
{
	spin_lock(&xvm_starting_lock);
	list_move_tail(&xvm->starting, &xvm_starting);
	spin_unlock(&xvm_starting_lock);
}

/**
 * xvm_probe_order_leave() - remove a device from those that are starting
 * @xvm: device that is registered or will not be; may have left already
 *
 * Context: Process context.
 */
void xvm_probe_order_leave(struct xvm_device *xvm)
{
	spin_lock(&xvm_starting_lock);
	if (!list_empty(&xvm->starting))
		WRITE_ONCE(xvm_departures, xvm_departures + 1);
	list_del_init(&xvm->starting);
	spin_unlock(&xvm_starting_lock);
	wake_up_all(&xvm_starting_changed);
}

static bool xvm_probe_order_is_next(struct xvm_device *xvm)
{
	bool next;

	spin_lock(&xvm_starting_lock);
	next = list_empty(&xvm->starting) || list_is_first(&xvm->starting, &xvm_starting);
	spin_unlock(&xvm_starting_lock);
	return next || READ_ONCE(xvm->removing);
}

/*
 * Waits until a device leaves the list. The timeout applies to each device before
 * this one, not to all of them, which may take long if they are many.
 */
static bool xvm_probe_order_one_left(struct xvm_device *xvm, unsigned int seen)
{
	return wait_event_timeout(xvm_starting_changed,
				  xvm_probe_order_is_next(xvm) || READ_ONCE(xvm_departures) != seen,
				  START_TIMEOUT);
}

/*
 * Removes the first device from the list, unless a device has left meanwhile. The
 * devices behind it keep their order, and one of them logs a warning.
 */
static bool xvm_probe_order_skip_first(struct xvm_device *xvm, unsigned int seen)
{
	struct xvm_device *first;
	bool skipped = false;

	spin_lock(&xvm_starting_lock);
	first = list_first_entry_or_null(&xvm_starting, struct xvm_device, starting);
	if (first && first != xvm && xvm_departures == seen) {
		list_del_init(&first->starting);
		WRITE_ONCE(xvm_departures, xvm_departures + 1);
		skipped = true;
	}
	spin_unlock(&xvm_starting_lock);
	if (skipped)
		wake_up_all(&xvm_starting_changed);
	return skipped;
}

/**
 * xvm_probe_order_wait() - wait until all devices before this one have left
 * @xvm: device
 *
 * Skips a device that does not start, with a warning.
 *
 * Context: Process context. Sleeps.
 */
void xvm_probe_order_wait(struct xvm_device *xvm)
{
	while (!xvm_probe_order_is_next(xvm)) {
		unsigned int seen = READ_ONCE(xvm_departures);

		if (!xvm_probe_order_one_left(xvm, seen) && xvm_probe_order_skip_first(xvm, seen))
			dev_warn(&xvm->xdev->dev,
				 "a device before this one does not start, going on without it\n");
	}
}
