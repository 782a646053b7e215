//! The connections of the server, of which there is a limit. A connection without a request rests. When
//! there is no room for a new one, the one that has rested longest is closed: clients keep connections for
//! their next request, and must not lock others out by that.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Connections at once.
const MAX_CONNECTIONS: usize = 1024;

/// Connections at once of one address, so that others always find room. A proxy is one address.
const MAX_PER_ADDRESS: usize = MAX_CONNECTIONS / 4 * 3;

/// The open connections.
#[derive(Default)]
pub(super) struct Connections {
    open: Mutex<OpenConnections>,
    /// Notified when a connection ends or begins to rest.
    changed: Notify,
}

#[derive(Default)]
struct OpenConnections {
    next_id: u64,
    by_id: HashMap<u64, OpenConnection>,
}

struct OpenConnection {
    address: IpAddr,
    /// `None` while it has a request.
    resting_since: Option<Instant>,
    close: CancellationToken,
}

/// One connection. It is forgotten when this is dropped.
pub(super) struct Connection {
    id: u64,
    all: Arc<Connections>,
    close: CancellationToken,
}

/// A request on a connection, until its reply is sent.
pub(super) struct RunningRequest(Arc<Connection>);

/// Why a connection is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// Its address has as many as it may have, each with a request.
    OfAddress,
    /// All are in use, each with a request.
    AtAll,
}

impl Connections {
    /// Admits a connection from this address, and closes one that rests where that makes room.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Connection, NoRoom> {
        let address = network_of(address);
        let mut open = self.lock();
        if open.count(address) >= MAX_PER_ADDRESS && !open.close_resting(Some(address)) {
            return Err(NoRoom::OfAddress);
        }
        if open.by_id.len() >= MAX_CONNECTIONS && !open.close_resting(None) {
            return Err(NoRoom::AtAll);
        }
        let id = open.next_id;
        open.next_id += 1;
        let close = CancellationToken::new();
        let resting_since = Some(Instant::now());
        open.by_id.insert(id, OpenConnection { address, resting_since, close: close.clone() });
        Ok(Connection { id, all: Arc::clone(self), close })
    }

    /// Closes the connection that has rested longest, if one rests.
    pub(super) fn close_one(&self) {
        self.lock().close_resting(None);
    }

    /// Waits until a connection ends or begins to rest.
    pub(super) async fn change(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections {
    fn count(&self, address: IpAddr) -> usize {
        self.by_id.values().filter(|connection| connection.address == address).count()
    }

    /// Closes the connection of this address, or of any, that has rested longest; whether there was one.
    fn close_resting(&mut self, address: Option<IpAddr>) -> bool {
        let of_address = self
            .by_id
            .iter()
            .filter(|(_, connection)| address.is_none_or(|address| connection.address == address));
        let resting =
            of_address.filter_map(|(id, connection)| Some((connection.resting_since?, *id)));
        let Some((_, id)) = resting.min() else { return false };
        if let Some(connection) = self.by_id.remove(&id) {
            connection.close.cancel();
        }
        true
    }
}

impl Connection {
    /// Waits until it is to be closed.
    pub(super) async fn closed(&self) {
        self.close.cancelled().await;
    }

    /// Begins a request; `None` when the connection is being closed, so that nobody answers.
    pub(super) fn begin(self: &Arc<Self>) -> Option<RunningRequest> {
        let mut open = self.all.lock();
        open.by_id.get_mut(&self.id)?.resting_since = None;
        Some(RunningRequest(Arc::clone(self)))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.lock().by_id.remove(&self.id);
        self.all.changed.notify_one();
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        if let Some(connection) = self.0.all.lock().by_id.get_mut(&self.0.id) {
            connection.resting_since = Some(Instant::now());
        }
        self.0.all.changed.notify_one();
    }
}

/// What stands for the holder of an address: anybody has a whole network of IPv6 addresses.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_one_that_has_rested_longest_makes_room() {
        let all = Arc::new(Connections::default());
        let mut held: Vec<Arc<Connection>> = Vec::new();
        for index in 0..MAX_CONNECTIONS {
            let one = all.admit(address((index % 2) as u8)).expect("there is room");
            held.push(Arc::new(one));
        }
        // The first one has a request, and the second one had one just now.
        let request = held[0].begin().expect("it is open");
        drop(held[1].begin().expect("it is open"));
        let newest = Arc::new(all.admit(address(3)).expect("one makes room"));
        assert!(held[2].close.is_cancelled() && held[2].begin().is_none());
        assert_eq!(held.iter().filter(|one| one.close.is_cancelled()).count(), 1);
        drop(request);
        // When each has a request there is no room, until one ends.
        let requests: Vec<_> = held.iter().chain([&newest]).filter_map(Connection::begin).collect();
        assert_eq!(requests.len(), MAX_CONNECTIONS);
        assert_eq!(all.admit(address(3)).err(), Some(NoRoom::AtAll));
        drop(requests);
        assert!(all.admit(address(3)).is_ok());
    }

    #[test]
    fn one_address_never_takes_all_places() {
        let all = Arc::new(Connections::default());
        let mut held = Vec::new();
        for last in 0..MAX_PER_ADDRESS {
            // Addresses of one network of IPv6.
            let one = IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last as u16]);
            held.push(Arc::new(all.admit(one).expect("there is room")));
        }
        let requests: Vec<_> = held.iter().filter_map(Connection::begin).collect();
        let other_host = IpAddr::from([0x2001, 0xdb8, 0, 1, 9, 9, 9, 9]);
        assert_eq!(all.admit(other_host).err(), Some(NoRoom::OfAddress));
        assert!(all.admit(address(1)).is_ok());
        drop(requests);
        assert!(all.admit(other_host).is_ok(), "one of its own makes room");
    }
}
