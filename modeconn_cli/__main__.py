from modeconn_cli.cli import main

main()
