// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * The message page and its event channel: requests that wait for their answer,
 * and the device's events [sections 4 and 5].
 *
 * What stands in the page is written and read by the core alone.
 */
#include <linux/interrupt.h>
#include <linux/jiffies.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <xen/interface/event_channel.h>
#include <xen/page.h>
#include <asm/xen/hypercall.h>

#include "virtio_msg_xen.h"

/* How long a device may take for an answer [section 7]. */
#define ANSWER_TIMEOUT (10 * HZ)

static int xvm_bus_try_send(struct xvm_bus *bus, const struct shim_request *request)
{
	unsigned long flags;
	int err = -EIO;

	spin_lock_irqsave(&bus->lock, flags);
	if (!bus->broken)
		err = shim_send(bus->transport, bus->page, request);
	spin_unlock_irqrestore(&bus->lock, flags);
	return err;
}

static int xvm_bus_try_take(struct xvm_bus *bus, struct shim_answer *answer, void *data,
			    u32 room)
{
	unsigned long flags;
	int err = -EIO;

	spin_lock_irqsave(&bus->lock, flags);
	if (!bus->broken)
		err = shim_take_answer(bus->transport, answer, data, room);
	spin_unlock_irqrestore(&bus->lock, flags);
	return err;
}

/*
 * Asks the device, and waits for the answer. An error is final: the device is
 * broken then, and every later request fails at once. But for -ERANGE, of
 * configuration that the device does not have: it was not asked.
 */
int xvm_bus_request(struct xvm_device *xvm, const struct shim_request *request,
		    struct shim_answer *answer, void *data, u32 room)
{
	struct xvm_bus *bus = &xvm->bus;
	long left = ANSWER_TIMEOUT;
	int err;

	mutex_lock(&bus->exchange);
	left = wait_event_timeout(bus->wait,
				  (err = xvm_bus_try_send(bus, request)) != -EAGAIN,
				  left);
	if (!err) {
		notify_remote_via_irq(bus->irq);
		wait_event_timeout(bus->wait,
				   (err = xvm_bus_try_take(bus, answer, data, room)) != -EAGAIN,
				   left);
	}
	mutex_unlock(&bus->exchange);

	if (err == -EAGAIN) {
		err = -ETIMEDOUT;
		xvm_fail(xvm, "no answer to a request");
	} else if (err == -EPROTO) {
		xvm_fail(xvm, "an answer does not fit its request");
	} else if (err && err != -EIO && err != -ERANGE) {
		xvm_fail(xvm, "a request could not be sent");
	}
	return err;
}

/* Tells the device in band that a queue has buffers; in any context. */
bool xvm_bus_avail(struct xvm_device *xvm, unsigned int index)
{
	struct xvm_bus *bus = &xvm->bus;
	unsigned long flags;
	int signal = -EIO;

	spin_lock_irqsave(&bus->lock, flags);
	if (!bus->broken)
		signal = shim_event_avail(bus->transport, bus->page, index);
	spin_unlock_irqrestore(&bus->lock, flags);
	if (signal > 0)
		notify_remote_via_irq(bus->irq);
	return signal >= 0;
}

/* Whether the event told anything new. */
static bool xvm_bus_config_changed(struct xvm_device *xvm, u32 status)
{
	struct xvm_bus *bus = &xvm->bus;
	unsigned long flags;
	bool ready, news;

	/* While the device is being registered there is nobody to tell yet. */
	spin_lock_irqsave(&bus->lock, flags);
	news = shim_config_is_news(&bus->announced, status,
				   shim_generation(bus->transport));
	ready = xvm->ready;
	bus->config_changed = !ready;
	spin_unlock_irqrestore(&bus->lock, flags);

	if (xvm_check_status(xvm, status) && ready)
		virtio_config_changed(&xvm->virtio->vdev);
	return news;
}

/* Handles one message. What it was worth is an enum shim_message. */
static u32 xvm_bus_receive_one(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	struct shim_received received;
	unsigned long flags;

	spin_lock_irqsave(&bus->lock, flags);
	shim_receive(bus->transport, bus->page, &received);
	spin_unlock_irqrestore(&bus->lock, flags);

	switch (received.what) {
	case SHIM_DRAINED:
		if (received.signal)
			notify_remote_via_irq(bus->irq);
		return SHIM_NONE;
	case SHIM_ANSWERED:
		return SHIM_USEFUL;
	case SHIM_CONFIG_CHANGED:
		return xvm_bus_config_changed(xvm, received.status) ? SHIM_USEFUL :
							      SHIM_USELESS;
	case SHIM_USED:
		return bus->used(xvm, received.index) ? SHIM_USEFUL :
							SHIM_USELESS;
	case SHIM_BROKEN:
		xvm_fail(xvm, "the message page is corrupt");
		return SHIM_NONE;
	default:
		return SHIM_USELESS;
	}
}

/*
 * Handles what has arrived, up to a budget. The event channel stays masked
 * until xen_irq_lateeoi(), so that this never runs twice at a time.
 */
static void xvm_bus_drain(struct xvm_device *xvm)
{
	struct shim_interrupt interrupt = {};
	struct xvm_bus *bus = &xvm->bus;
	u32 next;

	do {
		next = shim_interrupt_count(&interrupt, xvm_bus_receive_one(xvm));
	} while (next == SHIM_NEXT);
	/* For an answer that came, or for room in a page that was full. */
	wake_up(&bus->wait);

	if (next == SHIM_LATER)
		schedule_work(&bus->drain);
	else
		xen_irq_lateeoi(bus->irq, next == SHIM_DONE ?
					  0 : XEN_EOI_FLAG_SPURIOUS);
}

static void xvm_bus_drain_work(struct work_struct *work)
{
	xvm_bus_drain(container_of(work, struct xvm_device, bus.drain));
}

static irqreturn_t xvm_bus_interrupt(int irq, void *data)
{
	xvm_bus_drain(data);
	return IRQ_HANDLED;
}

void xvm_bus_init(struct xvm_device *xvm,
		  bool (*used)(struct xvm_device *xvm, unsigned int index))
{
	struct xvm_bus *bus = &xvm->bus;

	bus->used = used;
	bus->broken = true;	/* until it is open */
	mutex_init(&bus->exchange);
	spin_lock_init(&bus->lock);
	init_waitqueue_head(&bus->wait);
	INIT_WORK(&bus->drain, xvm_bus_drain_work);
}

/* Nothing is sent or received from here on. */
static void xvm_bus_free_transport(struct xvm_bus *bus)
{
	struct shim_transport *transport = bus->transport;
	unsigned long flags;

	spin_lock_irqsave(&bus->lock, flags);
	bus->broken = true;
	bus->transport = NULL;
	spin_unlock_irqrestore(&bus->lock, flags);
	kfree(transport);
}

static int xvm_bus_open_page(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	int ref;

	bus->page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!bus->page) {
		xenbus_dev_fatal(xvm->xdev, -ENOMEM, "no message page");
		return -ENOMEM;
	}
	ref = gnttab_grant_foreign_access(xvm->xdev->otherend_id,
					  virt_to_gfn(bus->page), 0);
	if (ref < 0) {
		xenbus_dev_fatal(xvm->xdev, ref,
				 "no grant reference is free for the message page");
		free_page((unsigned long)bus->page);
		bus->page = NULL;
		return ref;
	}
	bus->gref = ref;
	return 0;
}

/* A page that the backend still has mapped is freed once it has not [3.6]. */
static void xvm_bus_close_page(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;

	if (gnttab_try_end_foreign_access(bus->gref)) {
		free_page((unsigned long)bus->page);
	} else {
		dev_alert(&xvm->xdev->dev,
			  "backend still uses the message page; it is withheld\n");
		gnttab_end_foreign_access(bus->gref, virt_to_page(bus->page));
	}
	bus->page = NULL;
}

/*
 * As xenbus_alloc_evtchn(), which closes the device when no event channel is
 * left. A queue can do without.
 */
int xvm_bus_alloc_evtchn(struct xvm_device *xvm, evtchn_port_t *port)
{
	struct evtchn_alloc_unbound alloc = {
		.dom = DOMID_SELF,
		.remote_dom = xvm->xdev->otherend_id,
	};
	int err = HYPERVISOR_event_channel_op(EVTCHNOP_alloc_unbound, &alloc);

	if (!err)
		*port = alloc.port;
	return err;
}

/*
 * A device cannot do without an event channel for messages. It takes one when it is
 * found, before any device takes one for a queue, which can do without. Where none
 * is free now, there may be one when it is opened.
 */
void xvm_bus_reserve(struct xvm_device *xvm)
{
	if (xvm_bus_alloc_evtchn(xvm, &xvm->bus.reserved))
		xvm->bus.reserved = 0;
}

void xvm_bus_unreserve(struct xvm_device *xvm)
{
	if (xvm->bus.reserved)
		xenbus_free_evtchn(xvm->xdev, xvm->bus.reserved);
	xvm->bus.reserved = 0;
}

static int xvm_bus_take_port(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;

	if (!bus->reserved)
		return xvm_bus_alloc_evtchn(xvm, &bus->port);
	bus->port = bus->reserved;
	bus->reserved = 0;
	return 0;
}

static int xvm_bus_open_channel(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;
	int ret;

	ret = xvm_bus_take_port(xvm);
	if (ret) {
		xenbus_dev_fatal(xvm->xdev, ret,
				 "no event channel is free for messages");
		return ret;
	}
	ret = bind_evtchn_to_irqhandler_lateeoi(bus->port, xvm_bus_interrupt, 0,
						dev_name(&xvm->xdev->dev), xvm);
	if (ret < 0) {
		xenbus_dev_fatal(xvm->xdev, ret, "no interrupt for messages");
		xenbus_free_evtchn(xvm->xdev, bus->port);
		return ret;
	}
	bus->irq = ret;
	return 0;
}

/* Makes what the frontend offers [2.4], or says why it cannot. */
int xvm_bus_open(struct xvm_device *xvm,
		 const struct shim_negotiated *negotiated)
{
	struct xvm_bus *bus = &xvm->bus;
	int err;

	bus->transport = kzalloc(shim_transport_size(), GFP_KERNEL);
	if (!bus->transport) {
		xenbus_dev_fatal(xvm->xdev, -ENOMEM, "no transport");
		return -ENOMEM;
	}
	shim_transport_init(bus->transport, negotiated);
	memset(&bus->announced, 0, sizeof(bus->announced));
	memset(&bus->generations, 0, sizeof(bus->generations));
	bus->shared_pool = negotiated->shared_pool;
	bus->max_config = shim_max_config_bytes(bus->transport);
	bus->config_changed = false;
	bus->broken = false;
	err = xvm_bus_open_page(xvm);
	if (err)
		goto free_transport;
	err = xvm_bus_open_channel(xvm);
	if (err)
		goto close_page;
	return 0;

close_page:
	xvm_bus_close_page(xvm);
free_transport:
	xvm_bus_free_transport(bus);
	return err;
}

/* When this returns, no event of the device is being handled. */
void xvm_bus_quiesce(struct xvm_device *xvm)
{
	if (!xvm->bus.irq)
		return;
	synchronize_irq(xvm->bus.irq);
	flush_work(&xvm->bus.drain);
}

void xvm_bus_close(struct xvm_device *xvm)
{
	struct xvm_bus *bus = &xvm->bus;

	if (!bus->irq)
		return;
	/* First no interrupt that could start the work, then no work. */
	disable_irq(bus->irq);
	cancel_work_sync(&bus->drain);
	unbind_from_irqhandler(bus->irq, xvm);
	bus->irq = 0;
	xvm_bus_free_transport(bus);
	xvm_bus_close_page(xvm);
}

/* How many messages of the device meant nothing [5.3, 5.4]. */
u64 xvm_bus_dropped(struct xvm_device *xvm)
{
	struct shim_counters counters = {};

	spin_lock_irq(&xvm->bus.lock);
	if (xvm->bus.transport)
		shim_counters(xvm->bus.transport, &counters);
	spin_unlock_irq(&xvm->bus.lock);
	return counters.malformed + counters.unexpected;
}
