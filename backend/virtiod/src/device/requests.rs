//! A list of requests that keeps the allocations of earlier ones.

use std::ops::{Deref, DerefMut};

use super::VirtioRequest;

/// Requests that were taken from a ring, in order.
#[derive(Debug, Default)]
pub struct Requests {
    /// The requests, then earlier ones, whose allocations the next ones use.
    all: Vec<VirtioRequest>,
    /// Number of the requests.
    count: usize,
}

impl Requests {
    /// Adds a request.
    pub fn push(&mut self, request: VirtioRequest) {
        self.all.push(request);
        let last = self.all.len() - 1;
        self.all.swap(self.count, last);
        self.count += 1;
    }

    /// Adds the request that `replace` makes of an earlier one. If it fails, frees that one's
    /// allocation, which may be of any size.
    ///
    /// # Errors
    /// That of `replace`.
    #[inline]
    pub(super) fn try_push<E>(
        &mut self,
        replace: impl FnOnce(&mut VirtioRequest) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.count == self.all.len() {
            self.all.push(VirtioRequest::default());
        }
        if let Some(next) = self.all.get_mut(self.count) {
            if let Err(error) = replace(next) {
                *next = VirtioRequest::default();
                return Err(error);
            }
            self.count += 1;
        }
        Ok(())
    }

    /// Moves all of them out of the list.
    pub fn drain(&mut self) -> impl Iterator<Item = VirtioRequest> {
        self.all.drain(..std::mem::take(&mut self.count))
    }

    /// Makes all of them earlier ones, and adds those of `others`. Keeps at most `most`, each with
    /// room for at most `buffers` buffers.
    pub(super) fn retire(&mut self, others: Self, most: usize, buffers: usize) {
        self.iter_mut().for_each(|request| request.limit_capacity(buffers));
        self.count = 0;
        self.all.extend(others.all);
        self.all.truncate(most);
    }
}

impl Deref for Requests {
    type Target = [VirtioRequest];

    fn deref(&self) -> &[VirtioRequest] {
        self.all.get(..self.count).unwrap_or(&[])
    }
}

impl DerefMut for Requests {
    fn deref_mut(&mut self) -> &mut [VirtioRequest] {
        self.all.get_mut(..self.count).unwrap_or(&mut [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: u16) -> VirtioRequest {
        let mut request = VirtioRequest::default();
        request.head = head;
        request
    }

    fn heads(requests: &Requests) -> Vec<u16> {
        requests.iter().map(|request| request.head).collect()
    }

    #[test]
    fn requests_are_in_order_and_apart_from_earlier_ones() {
        let mut requests = Requests::default();
        for head in 0..6 {
            requests.push(request(head));
        }
        requests.retire(Requests::default(), 5, 8);
        assert!(requests.is_empty());
        for head in 7..10 {
            requests
                .try_push(|request| {
                    request.head = head;
                    Ok::<_, ()>(())
                })
                .unwrap();
        }
        requests.push(request(10));
        assert_eq!(heads(&requests), [7, 8, 9, 10]);
        assert_eq!(requests.drain().count(), 4);
        assert!(requests.is_empty());
    }

    #[test]
    fn failed_request_is_not_added_and_keeps_nothing() {
        let mut requests = Requests::default();
        let failed = requests.try_push(|request| {
            request.head = 5;
            Err(())
        });
        assert_eq!((failed, heads(&requests)), (Err(()), vec![]));
        assert_eq!(requests.all.iter().map(|spare| spare.head).collect::<Vec<_>>(), [0]);
    }

    /// Whatever requests a list had, and however often it takes part in an exchange.
    #[test]
    fn earlier_requests_keep_no_more_than_the_limits() {
        let (most, buffers) = (5, 8);
        let mut kept = Requests::default();
        for round in 0..20 {
            let mut requests = std::mem::take(&mut kept);
            for number in 0..round % 9 {
                requests
                    .try_push(|request| {
                        request.reserve(number * 3);
                        if number == 3 { Err(()) } else { Ok(()) }
                    })
                    .ok();
            }
            let mut others: Vec<_> = requests.drain().collect();
            let mut beside = Requests::default();
            beside.retire(requests, most, buffers);
            others.drain(..).for_each(|request| beside.push(request));
            beside.retire(std::mem::take(&mut kept), most, buffers);
            kept = beside;
            assert!(kept.is_empty() && kept.all.len() <= most, "round {round}");
            let capacities: Vec<_> = kept.all.iter().map(VirtioRequest::capacity).collect();
            assert!(capacities.iter().all(|room| *room <= buffers), "{round}: {capacities:?}");
        }
    }
}
