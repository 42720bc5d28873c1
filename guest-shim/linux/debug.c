// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * What a driver must not do, for tests that a device refuses it, and of what
 * happens where one does not. Off unless it is asked for by name when the
 * module is loaded.
 */
#include <linux/module.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

static char *debug_name = "none";
module_param_named(debug, debug_name, charp, 0444);
MODULE_PARM_DESC(debug, "For tests, none or what a device is to refuse: raw-addresses (buffers at guest-physical addresses), no-access-platform (the feature is not accepted), bypass (the feature is not accepted, and rings and buffers are at guest-physical addresses)");

static const char * const modes[] = {
	[XVM_DEBUG_NONE] = "none",
	[XVM_DEBUG_RAW_ADDRESSES] = "raw-addresses",
	[XVM_DEBUG_NO_ACCESS_PLATFORM] = "no-access-platform",
	[XVM_DEBUG_BYPASS] = "bypass",
};

static int mode;

/* Checks the module's parameter. */
int __init xvm_debug_init(void)
{
	mode = sysfs_match_string(modes, debug_name);
	if (mode < 0) {
		pr_err("virtio_msg_xen: debug=%s is none of none, raw-addresses, no-access-platform, bypass\n",
		       debug_name);
		return mode;
	}
	if (mode != XVM_DEBUG_NONE)
		pr_warn("virtio_msg_xen: debug=%s: devices are driven wrongly, for a test\n",
			debug_name);
	return 0;
}

bool xvm_debug(enum xvm_debug_mode asked)
{
	return mode == asked;
}
