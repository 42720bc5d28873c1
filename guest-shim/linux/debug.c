// SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only
/*
 * What a driver must not do, for tests that a device refuses it, and of what
 * happens where one does not. Off unless it is asked for by name when the
 * module is loaded.
 */
#include <linux/module.h>
#include <linux/string.h>

#include "virtio_msg_xen.h"

static char *xvm_debug_name = "none";
module_param_named(debug, xvm_debug_name, charp, 0444);
MODULE_PARM_DESC(debug, "For tests, none or what a device is to refuse: raw-addresses (buffers at guest-physical addresses), no-access-platform (the feature is not accepted), bypass (the feature is not accepted, and rings and buffers are at guest-physical addresses)");

static const char * const xvm_debug_modes[] = {
	[XVM_DEBUG_NONE] = "none",
	[XVM_DEBUG_RAW_ADDRESSES] = "raw-addresses",
	[XVM_DEBUG_NO_ACCESS_PLATFORM] = "no-access-platform",
	[XVM_DEBUG_BYPASS] = "bypass",
};

static int xvm_debug_active;

/* Checks the module's parameter. */
int __init xvm_debug_init(void)
{
	xvm_debug_active = sysfs_match_string(xvm_debug_modes, xvm_debug_name);
	if (xvm_debug_active < 0) {
		pr_err("virtio_msg_xen: debug=%s is none of none, raw-addresses, no-access-platform, bypass\n",
		       xvm_debug_name);
		return xvm_debug_active;
	}
	if (xvm_debug_active != XVM_DEBUG_NONE)
		pr_warn("virtio_msg_xen: debug=%s: devices are driven wrongly, for a test\n",
			xvm_debug_name);
	return 0;
}

bool xvm_debug(enum xvm_debug_mode asked)
{
	return xvm_debug_active == asked;
}
