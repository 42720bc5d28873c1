// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * Back-pressure: whether a request whose buffer finds the pool full waits until
 * requests of its own queue have ended, because then its driver tries again.
 *
 * A driver does not say for which queue it maps a buffer. But the block layer has one
 * queue for each processor, so it is the one of which this processor last notified
 * the device. Without such a queue no request waits.
 */
#include <linux/jiffies.h>
#include <linux/percpu.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio_msg_xen.h"

/**
 * xvm_pressure_open() - prepare for queues
 * @xvm: device without queues
 *
 * Return: 0 or -ENOMEM.
 * Context: Process context. Sleeps.
 */
int xvm_pressure_open(struct xvm_device *xvm)
{
	xvm->notified = alloc_percpu(unsigned int);
	return xvm->notified ? 0 : -ENOMEM;
}

/**
 * xvm_pressure_close() - undo xvm_pressure_open()
 * @xvm: device without queues
 *
 * Context: Process context. Sleeps.
 */
void xvm_pressure_close(struct xvm_device *xvm)
{
	free_percpu(xvm->notified);
	xvm->notified = NULL;
}

/**
 * xvm_pressure_notified() - note that this processor notifies the device
 * @xvm: device
 * @queue: queue of which it does
 *
 * Context: Any context.
 */
void xvm_pressure_notified(struct xvm_device *xvm, const struct xvm_queue *queue)
{
	unsigned int place = queue - xvm->queues;

	raw_cpu_write(*xvm->notified, place + 1);
}

/* The queue of this processor, or NULL. */
static struct xvm_queue *xvm_pressure_queue(struct xvm_device *xvm)
{
	unsigned int notified = raw_cpu_read(*xvm->notified);
	struct xvm_queue *queue;

	if (!notified || notified > xvm->nr_queues)
		return NULL;
	queue = &xvm->queues[notified - 1];
	return queue->vq ? queue : NULL;
}

/**
 * xvm_pressure_waits() - whether a request waits for space in the pool
 * @xvm: device whose driver maps a buffer of the request
 *
 * Return: true if the mapping is to fail, false if the buffer is to be granted.
 * Context: Any context.
 */
bool xvm_pressure_waits(struct xvm_device *xvm)
{
	struct xvm_queue *queue = xvm_pressure_queue(xvm);
	struct virtqueue *vq;
	u32 in_flight;
	u16 added;

	if (!queue)
		return false;
	vq = queue->vq;
	in_flight = virtqueue_get_vring_size(vq) - READ_ONCE(vq->num_free);
	added = virtio16_to_cpu(vq->vdev, virtqueue_get_vring(vq)->avail->idx);
	return shim_pressure_waits(&queue->admission, vq->vdev->id.device, in_flight,
				   added, jiffies_to_msecs(jiffies));
}
