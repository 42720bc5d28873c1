//! Runs the models.

#[test]
fn spec_4_3_messages_arrive_whole_and_in_order() {
    models::page_messages_arrive_whole_and_in_order();
}

#[test]
fn spec_4_3_slots_are_reused_after_they_were_read() {
    models::page_slots_are_reused_after_they_were_read();
}

#[test]
fn spec_4_5_full_queue_is_signalled() {
    models::page_full_queue_is_signalled();
}

#[test]
fn pool_units_have_one_owner() {
    models::pool_units_have_one_owner();
}
