// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Devices are registered in the order in which they were probed, which is that
 * of the guest's configuration: the first disk is /dev/vda, whichever backend
 * answers first. A backend that does not answer delays the others, and does not
 * stop them.
 */
#include <linux/completion.h>
#include <linux/jiffies.h>
#include <linux/list.h>

#include "virtio_msg_xen.h"

/* The longest that a device waits for the next of those before it. */
#define START_TIMEOUT (5 * HZ)

/* Devices that are probed and not yet registered, the first first. */
static LIST_HEAD(xvm_starting);
static unsigned int xvm_departures;		/* devices that left the list */
static DEFINE_SPINLOCK(xvm_starting_lock);
static DECLARE_WAIT_QUEUE_HEAD(xvm_starting_changed);

void xvm_probe_order_init(struct xvm_device *xvm)
{
	INIT_LIST_HEAD(&xvm->starting);
}

/* The devices that were there when the driver was registered are found. */
static DECLARE_COMPLETION(xvm_all_found);

/* May be called again. */
void xvm_probe_order_all_found(void)
{
	complete_all(&xvm_all_found);
}

/* Before a device takes what others cannot do without. */
void xvm_probe_order_wait_all_found(void)
{
	wait_for_completion_timeout(&xvm_all_found, START_TIMEOUT);
}

/* About to start; one that was before, and did not, is the last now. */
void xvm_probe_order_enter(struct xvm_device *xvm)
{
	spin_lock(&xvm_starting_lock);
	list_move_tail(&xvm->starting, &xvm_starting);
	spin_unlock(&xvm_starting_lock);
}

/* Registered, or given up; may be called again. */
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

/* Many devices take long: it is one that does not start that is given up on. */
static bool xvm_probe_order_one_left(struct xvm_device *xvm, unsigned int seen)
{
	return wait_event_timeout(xvm_starting_changed,
				  xvm_probe_order_is_next(xvm) || READ_ONCE(xvm_departures) != seen,
				  START_TIMEOUT);
}

/*
 * Gives up on the first of all, unless one left after all: those behind it keep
 * their order, and one of them says so.
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

void xvm_probe_order_wait(struct xvm_device *xvm)
{
	while (!xvm_probe_order_is_next(xvm)) {
		unsigned int seen = READ_ONCE(xvm_departures);

		if (!xvm_probe_order_one_left(xvm, seen) && xvm_probe_order_skip_first(xvm, seen))
			dev_warn(&xvm->xdev->dev,
				 "a device before this one does not start, going on without it\n");
	}
}
