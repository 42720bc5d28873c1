// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Notes which requests of a disk the device has not given back, for a backend in
 * another domain that goes on with the disk (reconnect.c) [2.16]. A device of another
 * type gives buffers back in order: its ring says which they are.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_ring.h>
#include <uapi/linux/virtio_ids.h>

#include "virtio_msg_xen.h"

unsigned int xvm_reconnect_seconds;
module_param_named(reconnect, xvm_reconnect_seconds, uint, 0444);
MODULE_PARM_DESC(reconnect, "Seconds for which disks and interfaces wait for another backend when the domain of theirs is gone; 0: they are given up");

static struct shim_split_ring xvm_unfinished_ring(struct virtqueue *vq)
{
	const struct vring *ring = virtqueue_get_vring(vq);

	return (struct shim_split_ring) {
		.descriptors = ring->desc,
		.available = ring->avail,
		.used = ring->used,
		.entries = ring->num,
	};
}

/**
 * xvm_unfinished_open() - begin to note the requests of a queue, if that is wanted
 * @xvm: device
 * @queue: queue, which is empty
 *
 * Without memory nothing is noted, and the disk cannot wait for another backend.
 *
 * Context: Process context. Sleeps.
 */
void xvm_unfinished_open(struct xvm_device *xvm, struct xvm_queue *queue)
{
	struct shim_unfinished *noted;

	if (!xvm_reconnect_seconds ||
	    xvm->virtio->vdev.id.device != VIRTIO_ID_BLOCK)
		return;
	noted = queue->unfinished ?: kmalloc(shim_unfinished_size(), GFP_KERNEL);
	if (!noted)
		return;
	spin_lock_irq(&xvm->bus.lock);
	queue->unfinished = noted;
	if (shim_unfinished_init(noted, virtqueue_get_vring_size(queue->vq)))
		queue->unfinished = NULL;
	spin_unlock_irq(&xvm->bus.lock);
	if (!queue->unfinished)
		kfree(noted);
}

/**
 * xvm_unfinished_close() - note nothing more
 * @xvm: device
 * @queue: queue, noted or not
 *
 * Context: Process context. Takes the bus lock.
 */
void xvm_unfinished_close(struct xvm_device *xvm, struct xvm_queue *queue)
{
	struct shim_unfinished *noted = queue->unfinished;

	spin_lock_irq(&xvm->bus.lock);
	queue->unfinished = NULL;
	spin_unlock_irq(&xvm->bus.lock);
	kfree(noted);
}

/**
 * xvm_unfinished_unmapped() - note that the driver unmaps a buffer
 * @xvm: device
 * @address: DMA address of the buffer
 *
 * The driver holds the lock of the queue, whose ring is intact.
 *
 * Context: Any context. Takes the bus lock.
 */
void xvm_unfinished_unmapped(struct xvm_device *xvm, dma_addr_t address)
{
	struct shim_split_ring ring;
	struct xvm_queue *queue;
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&xvm->bus.lock, flags);
	for (i = 0; i < xvm->nr_queues; i++) {
		queue = &xvm->queues[i];
		if (!queue->unfinished || !queue->vq)
			continue;
		ring = xvm_unfinished_ring(queue->vq);
		if (shim_unfinished_unmapped(queue->unfinished, &ring, address))
			break;
	}
	spin_unlock_irqrestore(&xvm->bus.lock, flags);
}

/**
 * xvm_unfinished_are_known() - whether the requests of all queues are noted
 * @xvm: device, whose bus lock is held
 *
 * A queue without a callback is polled: nobody knows when its driver is idle.
 */
bool xvm_unfinished_are_known(const struct xvm_device *xvm)
{
	unsigned int i;

	for (i = 0; i < xvm->nr_queues; i++) {
		const struct xvm_queue *queue = &xvm->queues[i];

		if (queue->vq && (!queue->unfinished || !queue->vq->callback))
			return false;
	}
	return true;
}

/**
 * xvm_unfinished_list_again() - list unfinished requests for the next device
 * @xvm: disk whose driver does nothing
 *
 * Return: Number of requests, or -EIO if they are not known.
 * Context: Process context. Takes the bus lock.
 */
int xvm_unfinished_list_again(struct xvm_device *xvm)
{
	struct shim_split_ring ring;
	struct xvm_queue *queue;
	unsigned int i;
	int count = 0, listed = 0;

	spin_lock_irq(&xvm->bus.lock);
	for (i = 0; i < xvm->nr_queues && listed >= 0; i++) {
		queue = &xvm->queues[i];
		if (!queue->vq)
			continue;
		ring = xvm_unfinished_ring(queue->vq);
		listed = queue->unfinished ?
			 shim_unfinished_list_again(queue->unfinished, &ring) : -EIO;
		count += listed;
	}
	spin_unlock_irq(&xvm->bus.lock);
	return listed < 0 ? listed : count;
}
