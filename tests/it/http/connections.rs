//! Connections: those of one client lock no other one out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::http::models_chat::ask;
use crate::support::server::{Server, TINY, make_key};

/// Longest wait of somebody for whom there is room.
const SOON: Duration = Duration::from_secs(5);

const PING: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn address(server: &Server) -> SocketAddr {
    server.base.strip_prefix("http://").expect("a URL").parse().expect("an address")
}

/// A connection from an address of this machine.
async fn connect(server: &Server, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((from, 0))).expect("an address of this machine");
    socket.connect(address(server)).await.expect("the server listens")
}

/// Sends a request and reads the beginning of its reply, which comes soon.
async fn answered(connection: &mut TcpStream, request: &str) -> String {
    let exchange = async {
        connection.write_all(request.as_bytes()).await.expect("it is open");
        let mut reply = [0; 1024];
        let count = connection.read(&mut reply).await.expect("it is open");
        String::from_utf8_lossy(&reply[..count]).into_owned()
    };
    tokio::time::timeout(SOON, exchange).await.expect("an answer within five seconds")
}

#[tokio::test]
async fn resting_connections_lock_nobody_out() {
    let server = Server::start();
    // A request whose body takes a while is not at rest.
    let body = ask(TINY, json!({"max_tokens": 1})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut busy = connect(&server, [127, 0, 0, 1]).await;
    busy.write_all(head.as_bytes()).await.expect("it is open");
    let mut resting = Vec::new();
    for number in 0..1100 {
        let mut one = connect(&server, [127, 0, 0, 1]).await;
        match number % 3 {
            0 => drop(answered(&mut one, PING).await),
            // The beginning of a head, and nothing at all.
            1 => one.write_all(b"GET /healthz HTT").await.expect("it is open"),
            _ => {}
        }
        resting.push(one);
    }
    for from in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        let reply = answered(&mut connect(&server, from).await, PING).await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
    let reply = answered(&mut busy, &body).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    // The newest ones were not closed.
    let newest = resting.iter_mut().rev().filter(|one| one.try_read(&mut [0]).is_err());
    assert!(newest.count() > 700);
}

#[tokio::test]
async fn an_address_and_a_key_leave_places_to_others() {
    let server = Server::start();
    let (ours, theirs) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-b"));
    let head = |key: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
             content-length: 100\r\n\r\n"
        )
    };
    let models = |key: &str| {
        format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n")
    };
    let mut busy = Vec::new();
    for number in 0..768 {
        let mut one = connect(&server, [127, 0, 0, 1]).await;
        let request = head(if number < 512 { &ours } else { &theirs });
        one.write_all(request.as_bytes()).await.expect("it is open");
        busy.push(one);
    }
    // Until the last ones are read too.
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The key has as many requests as it may have; the address has as many connections.
    let reply = answered(&mut connect(&server, [127, 0, 0, 2]).await, &models(&ours)).await;
    assert!(reply.starts_with("HTTP/1.1 429") && reply.contains("retry-after"), "{reply}");
    let reply = answered(&mut connect(&server, [127, 0, 0, 1]).await, PING).await;
    assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("retry-after"), "{reply}");
    let reply = answered(&mut connect(&server, [127, 0, 0, 3]).await, &models(&theirs)).await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    // Whoever ends a request has its place again.
    drop(busy);
    let began = Instant::now();
    loop {
        let reply = answered(&mut connect(&server, [127, 0, 0, 1]).await, &models(&ours)).await;
        if reply.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(began.elapsed() < SOON, "{reply}");
    }
}
