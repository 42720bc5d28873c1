//! A server and a client that exchange single bytes over TCP.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Returns each byte to its sender, one connection after another.
pub(crate) fn serve(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address);
    let listener = listener.with_context(|| format!("cannot listen at {address}"))?;
    for stream in listener.incoming() {
        // After a failure with one client the server continues with the next.
        if let Err(error) = stream.and_then(answer) {
            eprintln!("probe: {error}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Sends bytes and waits until the server returns each; prints the number per second.
pub(crate) fn measure(address: &str, milliseconds: u64) -> Result<()> {
    let stream = TcpStream::connect(address);
    let mut stream = stream.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (start, limit) = (Instant::now(), Duration::from_millis(milliseconds));
    let (mut byte, mut trips) = ([b'x'], 0u32);
    while start.elapsed() < limit {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).context("the server closed the connection")?;
        trips += 1;
    }
    println!("{:.2}", f64::from(trips) / start.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn server_returns_every_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || answer(listener.accept().unwrap().0));
        measure(&address.to_string(), 1).unwrap();
        server.join().unwrap().unwrap();
    }
}
