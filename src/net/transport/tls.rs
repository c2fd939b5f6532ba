//! libp2p's TLS 1.3 handshake, with the cipher that the processor is good at first.
//!
//! Both sides show one self-signed certificate that carries their libp2p key (libp2p's TLS specification);
//! [`libp2p::tls::certificate`] makes and checks those. Nothing else is trusted: no authorities, no names, no resumption of
//! earlier sessions, so every connection proves both peers anew.

mod channel;

use std::{io, net::Ipv4Addr, sync::Arc};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, identity::Keypair, tls::certificate};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme, SupportedCipherSuite,
    client::{
        Resumption, UnbufferedClientConnection,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{aws_lc_rs, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, UnbufferedServerConnection,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};

/// Name of this upgrade in protocol negotiation.
pub(super) const NAME: &str = "/tls/1.0.0";

const ALPN: &[u8] = b"libp2p";

pub(super) use self::channel::Channel as TlsChannel;
use self::channel::Side;

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("could not make a certificate: {0}")]
    Generate(#[from] certificate::GenError),
    #[error("could not configure TLS: {0}")]
    Configure(#[from] rustls::Error),
    #[error("handshake failed: {0}")]
    Handshake(#[from] io::Error),
    #[error("the peer's certificate is not a libp2p certificate: {0}")]
    Certificate(#[from] certificate::ParseError),
    #[error("the peer showed no certificate")]
    NoCertificate,
}

/// Configuration of both directions.
#[derive(Clone)]
pub(super) struct Tls {
    client: ClientConfig,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// Makes a certificate for this node; it lasts as long as the process.
    pub(super) fn new(identity: &Keypair) -> Result<Self, TlsError> {
        let (certificate, key) = certificate::generate(identity)?;
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = cipher_suites(has_aes(), has_wide_aes_without_avx512());
        // The certificate's libp2p extension is marked critical, so rustls's own check of the pair would refuse it.
        let key = provider.key_provider.load_private_key(key)?;
        let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(
            vec![certificate],
            key,
        )));
        let provider = Arc::new(provider);
        let anyone = Arc::new(Verifier { expected: None });

        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(anyone.clone())
            .with_client_cert_resolver(shown.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();

        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(anyone)
            .with_cert_resolver(shown);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        Ok(Self {
            client,
            server: Arc::new(server),
        })
    }

    /// Waits for the other side's handshake; tells who it is.
    pub(super) async fn accept<S>(self, socket: S) -> Result<(PeerId, TlsChannel<S>), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let side = Side::Server(UnbufferedServerConnection::new(self.server)?);
        let channel = TlsChannel::open(side, socket).await?;
        Ok((peer_id(channel.state().peer_certificates())?, channel))
    }

    /// Opens the handshake. With an expected peer, any other one is turned away before it learns who is calling.
    pub(super) async fn connect<S>(
        mut self,
        socket: S,
        expected: Option<PeerId>,
    ) -> Result<(PeerId, TlsChannel<S>), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.client
            .dangerous()
            .set_certificate_verifier(Arc::new(Verifier { expected }));
        // An address in place of a name keeps the name extension out of the handshake, as the specification asks.
        let nobody = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let client = UnbufferedClientConnection::new(Arc::new(self.client), nobody)?;
        let channel = TlsChannel::open(Side::Client(client), socket).await?;
        Ok((peer_id(channel.state().peer_certificates())?, channel))
    }
}

fn peer_id(certificates: Option<&[CertificateDer<'static>]>) -> Result<PeerId, TlsError> {
    match certificates {
        Some([only]) => Ok(certificate::parse(only)?.peer_id()),
        _ => Err(TlsError::NoCertificate),
    }
}

/// The suites in order of preference. Of the two libraries that have them, AWS-LC's use 512 bits at a time where the processor
/// can; ring's use 256, for which AWS-LC has nothing: it takes twice as long there (docs/performance.md).
fn cipher_suites(aes: bool, in_256_bits: bool) -> Vec<SupportedCipherSuite> {
    use aws_lc_rs::cipher_suite as aws_lc;
    use ring::cipher_suite as ring;
    let (aes_128, aes_256) = if in_256_bits {
        (
            ring::TLS13_AES_128_GCM_SHA256,
            ring::TLS13_AES_256_GCM_SHA384,
        )
    } else {
        (
            aws_lc::TLS13_AES_128_GCM_SHA256,
            aws_lc::TLS13_AES_256_GCM_SHA384,
        )
    };
    let chacha = aws_lc::TLS13_CHACHA20_POLY1305_SHA256;
    if aes {
        vec![aes_128, aes_256, chacha]
    } else {
        vec![chacha, aes_128, aes_256]
    }
}

/// Whether the processor has instructions for AES. Without them ChaCha20 is several times as fast.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Whether the processor has instructions for two blocks of AES at a time, and none for four.
fn has_wide_aes_without_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("vaes")
        && std::arch::is_x86_feature_detected!("vpclmulqdq")
        && std::arch::is_x86_feature_detected!("avx2")
        && !std::arch::is_x86_feature_detected!("avx512vl");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Accepts exactly one well-formed libp2p certificate, of one peer if one is expected.
#[derive(Debug)]
struct Verifier {
    expected: Option<PeerId>,
}

impl Verifier {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        if !intermediates.is_empty() {
            return Err(rustls::Error::General(
                "a libp2p peer shows exactly one certificate".into(),
            ));
        }
        let found = certificate::parse(certificate)?.peer_id();
        match self.expected {
            Some(expected) if expected != found => Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
            _ => Ok(()),
        }
    }

    fn check_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        certificate::parse(certificate)?.verify_signature(
            signed.scheme,
            message,
            signed.signature(),
        )?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// What certificates of other libp2p implementations may be signed with.
    fn schemes() -> Vec<SignatureScheme> {
        use SignatureScheme::*;
        vec![
            ECDSA_NISTP256_SHA256,
            ECDSA_NISTP384_SHA384,
            ED25519,
            RSA_PSS_SHA256,
            RSA_PSS_SHA384,
            RSA_PSS_SHA512,
            RSA_PKCS1_SHA256,
            RSA_PKCS1_SHA384,
            RSA_PKCS1_SHA512,
        ]
    }
}

/// TLS 1.2 is not among the configured versions; should it ever be asked about, it is refused.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.3 or nothing".into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_comes_first_where_the_processor_has_it() {
        for in_256_bits in [false, true] {
            let first = |aes| cipher_suites(aes, in_256_bits)[0].suite();
            assert_eq!(first(true), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
            assert_eq!(
                first(false),
                rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            );
        }
    }
}
