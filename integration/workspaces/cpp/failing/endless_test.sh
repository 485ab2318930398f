#!/bin/sh
echo "started and waiting"
exec sleep 600
